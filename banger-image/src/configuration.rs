//! The part of an image's configuration that says how commands run (OCI image specification,
//! `config.md`, "config"). `docker save` has the same object under the same name, since its first
//! version.
//!
//! JSON is read as Docker reads it ([`banger_policy::json`]), and a command may be one text. What
//! cannot be kept and would not keep a container from running is left out with a warning; the rest
//! of the rules is [`banger_policy::image`].

use super::container::json;
use super::error::ImageError;
use super::names::printable;
use super::source::Progress;
use banger_policy::ImageConfig;
use banger_policy::image::variable;
use banger_policy::json::{AnyCase, fields};
use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::fmt;

#[derive(Default, Deserialize)]
#[serde(default)]
struct Whole {
    #[serde(deserialize_with = "fields")]
    config: Raw,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Raw {
    env: Option<Vec<Text>>,
    #[serde(rename = "workingdir")]
    working_dir: Option<Text>,
    user: Option<Text>,
    entrypoint: Option<Words>,
    cmd: Option<Words>,
}

/// The bytes of a JSON string. It should be UTF-8 (RFC 8259 section 8.1), and another text is no
/// reason to refuse the image.
struct Text(Vec<u8>);

/// A command: its words, or one text.
struct Words(Vec<Text>);

/// The configuration in the JSON `data`, which is called `name` in messages.
///
/// # Errors
/// `Oci` when it is not the JSON of a configuration, `Config` for what no process could be given or
/// no record holds.
pub(super) fn parse(data: &[u8], name: &str, progress: &dyn Progress) -> Result<ImageConfig, ImageError> {
    let AnyCase(Whole { config: raw }) = json(data, name)?;
    let config = ImageConfig {
        env: variables(raw.env.unwrap_or_default(), progress),
        working_dir: one("WorkingDir", raw.working_dir, |path| path.starts_with('/'), progress),
        user: one("User", raw.user, |_| true, progress),
        entrypoint: entrypoint(words("Entrypoint", raw.entrypoint, progress)),
        cmd: words("Cmd", raw.cmd, progress),
    };
    config.check().map_err(|fault| ImageError::Config { fault })?;
    Ok(config)
}

/// One warning for all that are left out: an image decides how many there are.
fn variables(raw: Vec<Text>, progress: &dyn Progress) -> Vec<String> {
    let (mut kept, mut left_out, mut first) = (Vec::with_capacity(raw.len().min(64)), 0_u64, String::new());
    for Text(bytes) in raw {
        match String::from_utf8(bytes) {
            Ok(entry) if variable(&entry).is_some() => kept.push(entry),
            other => {
                if left_out == 0 {
                    first = printable(&other.map_or_else(|error| error.into_bytes(), String::into_bytes));
                }
                left_out = left_out.saturating_add(1);
            }
        }
    }
    if left_out > 0 {
        progress.warn(&format!(
            "{left_out} entries of Env in the image's configuration are left out: they are not NAME=value in UTF-8, such as \"{first}\""
        ));
    }
    kept
}

/// A text that is empty says nothing.
fn one(field: &str, raw: Option<Text>, usable: impl Fn(&str) -> bool, progress: &dyn Progress) -> Option<String> {
    let bytes = raw.map(|Text(bytes)| bytes).filter(|bytes| !bytes.is_empty())?;
    match String::from_utf8(bytes) {
        Ok(text) if usable(&text) => Some(text),
        other => {
            let shown = printable(&other.map_or_else(|error| error.into_bytes(), String::into_bytes));
            progress.warn(&format!("{field} of the image's configuration is left out: it cannot be \"{shown}\""));
            None
        }
    }
}

/// A command without one of its words would be another one: it is left out whole.
fn words(field: &str, raw: Option<Words>, progress: &dyn Progress) -> Vec<String> {
    let words = raw.map(|Words(words)| words).unwrap_or_default();
    let texts: Result<Vec<String>, _> = words.into_iter().map(|Text(bytes)| String::from_utf8(bytes)).collect();
    texts.unwrap_or_else(|_| {
        progress.warn(&format!("{field} of the image's configuration is left out: it is not UTF-8"));
        Vec::new()
    })
}

/// `ENTRYPOINT [""]` takes back that of the image below (`mergeAndVerifyConfig` in Moby).
fn entrypoint(words: Vec<String>) -> Vec<String> {
    if words == [""] { Vec::new() } else { words }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Text;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Text, E> {
                Ok(Text(bytes.to_vec()))
            }
        }
        from.deserialize_bytes(Bytes)
    }
}

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Words;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of strings, or a string")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Words, E> {
                Ok(Words(vec![Text(text.as_bytes().to_vec())]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Words, A::Error> {
                let mut words = Vec::new();
                while let Some(word) = from.next_element()? {
                    words.push(word);
                }
                Ok(Words(words))
            }
        }
        from.deserialize_any(Either)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use banger_policy::image::{ConfigFault, MAX_CONFIG_BYTES};
    use std::cell::RefCell;

    #[derive(Default)]
    struct Warnings(RefCell<Vec<String>>);

    impl Progress for Warnings {
        fn warn(&self, text: &str) {
            self.0.borrow_mut().push(text.to_owned());
        }
    }

    fn parsed(config: &[u8]) -> (Result<ImageConfig, ImageError>, Vec<String>) {
        let warnings = Warnings::default();
        let whole = [br#"{"os":"linux","config":"#.as_slice(), config, b"}"].concat();
        (parse(&whole, "config", &warnings), warnings.0.into_inner())
    }

    fn kept(config: &[u8]) -> ImageConfig {
        let (result, warnings) = parsed(config);
        assert!(warnings.is_empty(), "{warnings:?}");
        result.unwrap()
    }

    #[test]
    fn what_an_image_says_is_kept_byte_for_byte() {
        let config = kept(
            br#"{"Env": ["PATH=/opt/bin:/usr/bin", "KEY=-----BEGIN\n\u001b\u00e4", "A=", "A=b=c"], "WorkingDir": "/srv/app",
                "User": "app:staff", "Entrypoint": ["/entry", "a b", ""], "Cmd": ["-c", "x\ny"],
                "Labels": {"a": "b"}, "ExposedPorts": {"80/tcp": {}}, "Healthcheck": {"Test": ["NONE"]}}"#,
        );
        assert_eq!(config.env, ["PATH=/opt/bin:/usr/bin", "KEY=-----BEGIN\n\u{1b}\u{e4}", "A=", "A=b=c"]);
        assert_eq!((config.working_dir.as_deref(), config.user.as_deref()), (Some("/srv/app"), Some("app:staff")));
        assert_eq!(
            (config.entrypoint, config.cmd),
            (vec!["/entry".into(), "a b".into(), String::new()], vec!["-c".to_owned(), "x\ny".into()])
        );
    }

    #[test]
    fn nothing_is_said_in_several_ways() {
        let nothing = br#"{"Env": null, "WorkingDir": "", "User": null, "Entrypoint": null, "Cmd": []}"#;
        for config in [b"{}".as_slice(), b"null", nothing] {
            assert_eq!(kept(config), ImageConfig::default());
        }
        for config in [br#"{"Entrypoint": [""], "Cmd": ["a"]}"#.as_slice(), br#"{"Entrypoint": "", "Cmd": ["a"]}"#] {
            let config = kept(config);
            assert_eq!((config.entrypoint, config.cmd), (Vec::new(), vec!["a".to_owned()]));
        }
        assert_eq!(kept(br#"{"Entrypoint": ["", ""]}"#).entrypoint, ["", ""]);
        for whole in [b"{}".as_slice(), b"null", br#"{"config": null}"#] {
            assert_eq!(parse(whole, "config", &()).unwrap(), ImageConfig::default());
        }
        assert_eq!(kept(br#"{"Cmd": "/bin/sh", "Entrypoint": "a b"}"#).entrypoint, ["a b"]);
    }

    #[test]
    fn names_of_fields_have_any_case() {
        let wanted = kept(br#"{"Env": ["A=1"], "WorkingDir": "/w", "User": "app", "Entrypoint": ["e"], "Cmd": ["c"]}"#);
        for text in [
            r#"{"config": {"env": ["A=1"], "workingDir": "/w", "user": "app", "entrypoint": "e", "cmd": ["c"]}}"#,
            r#"{"Config": {"ENV": ["A=1"], "WORKINGDIR": "/w", "USER": "app", "EntryPoint": "e", "CMD": ["c"]}}"#,
        ] {
            assert_eq!(parse(text.as_bytes(), "config", &()).unwrap(), wanted, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_kept_is_left_out_aloud() {
        let (result, warnings) =
            parsed(b"{\"Env\": [\"A=1\", \"NONAME\", \"=x\", \"L=\xff\xfe\", \"S=\\ud800\"], \"WorkingDir\": \"srv\", \"User\": \"\xff\", \"Cmd\": [\"a\", \"\xff\"]}");
        assert_eq!(result.unwrap(), ImageConfig { env: vec!["A=1".into()], ..ImageConfig::default() });
        assert_eq!(warnings.len(), 4, "{warnings:?}");
        assert!(warnings[0].starts_with("4 entries of Env") && warnings[0].contains("NONAME"), "{warnings:?}");
        assert!(warnings[1].contains("WorkingDir") && warnings[2].contains("User") && warnings[3].contains("Cmd"));
    }

    #[test]
    fn what_no_process_can_have_ends_the_import() {
        for (config, field) in [
            (br#"{"Env": ["A=\u0000"]}"#.as_slice(), "Env"),
            (br#"{"Cmd": ["a\u0000b"]}"#, "Cmd"),
            (br#"{"WorkingDir": "/a\u0000"}"#, "WorkingDir"),
        ] {
            let fault = parsed(config).0.unwrap_err();
            assert!(
                matches!(fault, ImageError::Config { fault: ConfigFault::Nul { field: at } } if at == field),
                "{fault}"
            );
        }
        let fault = parsed(br#"{"User": "a\nb"}"#).0.unwrap_err();
        assert!(fault.to_string().contains("User contains control characters"), "{fault}");
    }

    #[test]
    fn what_no_record_holds_ends_the_import_and_what_is_no_configuration_as_well() {
        let long = format!(r#"{{"Env": ["A={}"]}}"#, "x".repeat(MAX_CONFIG_BYTES));
        let many = format!(r#"{{"Cmd": [{}""]}}"#, r#""","#.repeat(1 << 20));
        for config in [long, many] {
            let fault = parsed(config.as_bytes()).0.unwrap_err();
            assert!(matches!(fault, ImageError::Config { fault: ConfigFault::TooLong { .. } }), "{fault}");
            assert!(fault.to_string().len() < 300);
        }
        for config in [br#"{"Env": "A=1"}"#.as_slice(), br#"{"Env": [1]}"#, br#"{"User": ["a"]}"#, b"\"x\"", b"3"] {
            let fault = parsed(config).0.unwrap_err();
            assert!(matches!(fault, ImageError::Oci { .. }), "{fault}");
        }
    }
}
