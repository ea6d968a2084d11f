//! Whom we believe: the certificate authorities of the host, or those of the user's
//! `SSL_CERT_FILE`.

use crate::error::explained;
use anyhow::Context as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::client::{WebPkiServerVerifier, verify_server_name};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
};

/// As OpenSSL's: it stands in the place of the host's authorities.
pub(super) const VARIABLE: &str = "SSL_CERT_FILE";
/// Debian and Ubuntu; Fedora and RHEL; others.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// # Errors
/// When no authority is found; with what to install or set.
pub(super) fn config() -> anyhow::Result<Arc<ClientConfig>> {
    let own = std::env::var_os(VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from);
    let bundle = own.or_else(|| BUNDLES.iter().map(PathBuf::from).find(|path| path.is_file())).ok_or_else(|| {
        explained(
            "no certificate authorities are installed on this host",
            format!("install the package ca-certificates, or set {VARIABLE} to a file of your own"),
        )
    })?;
    of_bundle(&bundle)
}

/// # Errors
/// When the file cannot be read or has no certificate.
pub(super) fn of_bundle(bundle: &Path) -> anyhow::Result<Arc<ClientConfig>> {
    let what = || format!("cannot read certificate authorities from {}", bundle.display());
    let certificates: Vec<_> =
        CertificateDer::pem_file_iter(bundle).with_context(what)?.flatten().map(CertificateDer::into_owned).collect();
    let mut roots = RootCertStore::empty();
    // One that cannot be read is passed over, as other programs do: hosts have odd ones.
    let (added, _) = roots.add_parsable_certificates(certificates.iter().cloned());
    if added == 0 {
        return Err(explained("there is no certificate in it", format!("{VARIABLE} names a file in PEM format")))
            .with_context(what);
    }
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build();
    let verifier = Arc::new(Verifier { verifier: verifier.context("TLS")?, roots: certificates });
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().context("TLS")?;
    Ok(Arc::new(config.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()))
}

/// What rustls verifies, and one thing more: a server may show the very certificate that is trusted
/// as an authority's, as a registry does whose certificate has signed itself. webpki takes an
/// authority's certificate for no server's; OpenSSL and Go do.
#[derive(Debug)]
struct Verifier {
    verifier: Arc<WebPkiServerVerifier>,
    roots: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match self.verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // webpki has found it to be valid today before it says so.
            Err(Error::InvalidCertificate(CertificateError::Other(why))) if is_of_an_authority(&why) => {
                if !self.roots.iter().any(|root| root == end_entity) {
                    return Err(CertificateError::UnknownIssuer.into());
                }
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

/// rustls passes webpki's word on as it is.
fn is_of_an_authority(why: &OtherError) -> bool {
    format!("{:?}", why.0) == "CaUsedAsEndEntity"
}
