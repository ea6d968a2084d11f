//! Whom we believe: the certificate authorities of the host, or those of the user's
//! `SSL_CERT_FILE`.

use crate::error::explained;
use anyhow::Context as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

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
    let certificates = CertificateDer::pem_file_iter(bundle).with_context(what)?;
    let mut roots = RootCertStore::empty();
    // One that cannot be read is passed over, as other programs do: hosts have odd ones.
    let (added, _) = roots.add_parsable_certificates(certificates.flatten());
    if added == 0 {
        return Err(explained("there is no certificate in it", format!("{VARIABLE} names a file in PEM format")))
            .with_context(what);
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().context("TLS")?;
    Ok(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
}
