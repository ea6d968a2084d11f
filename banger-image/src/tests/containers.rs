//! Archives that hold images, as engines and registries' tools write them beside the plain cases.
//! `banger-image/tests/README.md` lists all kinds.

use super::super::{ImageError, ImportedRootfs, Limits, SourceKind, import};
use super::kinds::changed;
use super::maker::{Item, SIZE, Tar, file_of, hasher, import_error, item, pack, sha256};
use serde_json::{Value, json};

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// An OCI layout in the making: its blobs, by path.
#[derive(Clone, Default)]
struct Layout(Vec<(String, Vec<u8>)>);

impl Layout {
    /// Adds a blob; gives its descriptor.
    fn blob(&mut self, media_type: &str, data: &[u8]) -> Value {
        let digest = sha256(data);
        self.0.push((format!("blobs/sha256/{digest}"), data.to_vec()));
        json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": data.len()})
    }

    fn manifest(&mut self, config: &Value, layers: &Value) -> Value {
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers}).to_string();
        self.blob("application/vnd.oci.image.manifest.v1+json", manifest.as_bytes())
    }

    /// An image with one file of this name, for what `words` say.
    fn image_for(&mut self, name: &str, words: Value, config_type: &str) -> Value {
        let layer = Tar::default().file(&format!("etc/{name}"), b"1").end();
        let mut config = words;
        config["rootfs"] = json!({"type": "layers", "diff_ids": [format!("sha256:{}", sha256(&layer))]});
        let config = self.blob(config_type, config.to_string().as_bytes());
        let layer = self.blob(LAYER, &layer);
        self.manifest(&config, &json!([layer]))
    }

    fn image(&mut self, name: &str) -> Value {
        self.image_for(name, json!({"os": "linux", "architecture": "amd64"}), CONFIG)
    }

    fn index(&mut self, manifests: &[Value]) -> Value {
        let index = json!({"schemaVersion": 2, "manifests": manifests}).to_string();
        self.blob("application/vnd.oci.image.index.v1+json", index.as_bytes())
    }

    /// Without the blob of a descriptor.
    fn without(mut self, descriptor: &Value) -> Self {
        let path = digest(descriptor);
        self.0.retain(|(name, _)| !name.ends_with(&path));
        self
    }

    fn files(&self, manifests: &[Value]) -> Vec<(String, Vec<u8>)> {
        let index = json!({"schemaVersion": 2, "manifests": manifests}).to_string();
        let marker = br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec();
        let top = [("oci-layout".to_owned(), marker), ("index.json".to_owned(), index.into_bytes())];
        [self.0.clone(), top.to_vec()].concat()
    }

    fn tar(&self, manifests: &[Value]) -> Vec<u8> {
        pack(&self.files(manifests))
    }
}

fn digest(descriptor: &Value) -> String {
    descriptor["digest"].as_str().unwrap().trim_start_matches("sha256:").to_owned()
}

fn on(mut descriptor: Value, platform: Value) -> Value {
    descriptor["platform"] = platform;
    descriptor
}

fn amd64(descriptor: &Value, variant: &str) -> Value {
    let mut platform = json!({"os": "linux", "architecture": "amd64"});
    if !variant.is_empty() {
        platform["variant"] = json!(variant);
    }
    on(descriptor.clone(), platform)
}

fn called(mut descriptor: Value, name: &str) -> Value {
    descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": name});
    descriptor
}

fn imported(archive: &[u8], reference: Option<&str>) -> Result<ImportedRootfs, ImageError> {
    let dir = tempfile::tempdir().unwrap();
    import(file_of(archive), dir.path(), SIZE, reference, Limits::for_build_size(SIZE), &hasher(), &())
}

/// Digest of the image that is taken of an archive.
fn taken(archive: &[u8]) -> String {
    imported(archive, None).unwrap().source_digest.to_string()
}

/// cosign gives a signature the configuration of an image.
#[test]
fn what_is_signed_and_attested_beside_an_image_is_no_image() {
    for kind in [
        "application/vnd.dev.cosign.simplesigning.v1+json",
        "application/vnd.dsse.envelope.v1+json",
        "text/spdx+json",
        "application/vnd.docker.ai.gguf.v3",
    ] {
        let mut layout = Layout::default();
        let signature = layout.blob(kind, br#"{"critical": {}}"#);
        let words = json!({"architecture": "", "os": "", "config": {},
            "rootfs": {"type": "layers", "diff_ids": [signature["digest"]]}});
        let config = layout.blob(CONFIG, words.to_string().as_bytes());
        let signature = layout.manifest(&config, &json!([signature]));
        let image = layout.image("x");
        for manifests in [[image.clone(), signature.clone()], [signature.clone(), image.clone()]] {
            assert_eq!(taken(&layout.tar(&manifests)), digest(&image), "{kind}");
        }
        let error = import_error(&layout.tar(&[signature])).to_string();
        assert!(error.contains("names no image") && error.contains(kind), "{error}");
    }
    // What docker writes, and what it wrote before.
    for kind in [
        "",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.docker.container.image.rootfs.diff+x-gtar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
    ] {
        let mut layout = Layout::default();
        let tar = Tar::default().file("etc/x", b"1").end();
        let words = json!({"rootfs": {"diff_ids": [format!("sha256:{}", sha256(&tar))]}});
        let (config, layer) = (layout.blob(CONFIG, words.to_string().as_bytes()), layout.blob(kind, &tar));
        let image = layout.manifest(&config, &json!([layer]));
        assert_eq!(taken(&layout.tar(std::slice::from_ref(&image))), digest(&image), "{kind}");
    }
}

#[test]
fn of_the_variants_of_a_platform_the_plainest_that_is_there_is_taken() {
    let mut layout = Layout::default();
    let [plain, second, third] = ["plain", "second", "third"].map(|name| layout.image(name));
    let all = [amd64(&third, "v3"), amd64(&plain, ""), amd64(&second, "v2")];
    let v1 = [amd64(&second, "v2"), amd64(&plain, "v1")];
    for (manifests, wanted) in [(&all[..], &plain), (&v1[..], &plain), (&all[..1], &third)] {
        assert_eq!(taken(&layout.tar(manifests)), digest(wanted));
        let mut nested = layout.clone();
        let index = nested.index(manifests);
        assert_eq!(taken(&nested.tar(&[index])), digest(wanted));
    }
    // An archive of one platform keeps the index of all.
    let lacking = layout.clone().without(&plain);
    assert_eq!(taken(&lacking.tar(&all)), digest(&second));
    let mut nested = lacking.clone();
    let index = nested.index(&all);
    assert_eq!(taken(&nested.tar(&[index])), digest(&second));
    let error = import_error(&lacking.tar(&all[1..2])).to_string();
    assert!(error.contains(&format!("{} is missing", digest(&plain))), "{error}");
    // Two images of one platform remain two, under names or without.
    let two = [amd64(&plain, ""), amd64(&second, "")];
    assert!(import_error(&layout.tar(&two)).to_string().contains("several images"));
    let two = [called(amd64(&plain, ""), "app:1"), called(amd64(&second, "v2"), "app:2")];
    let error = import_error(&layout.tar(&two)).to_string();
    assert!(error.contains("app:1, app:2"), "{error}");
    let other = imported(&layout.tar(&two), Some("app:2")).unwrap();
    assert_eq!(other.source_digest.to_string(), digest(&second));
}

#[test]
fn one_image_under_two_names_is_one() {
    let mut layout = Layout::default();
    let image = layout.image("x");
    let index = layout.index(&[amd64(&image, "")]);
    for named in [&image, &index] {
        let tar = layout.tar(&[called(named.clone(), "app:1"), called(named.clone(), "app:2")]);
        for reference in [None, Some("app:1"), Some("app:2")] {
            assert_eq!(imported(&tar, reference).unwrap().source_digest.to_string(), digest(&image), "{reference:?}");
        }
    }
    // Two manifests of one configuration: the same layers, packed in two ways.
    let tar = Tar::default().file("etc/x", b"1").end();
    let config = layout.0.iter().find(|(_, data)| data.starts_with(b"{\"architecture\"")).unwrap().1.clone();
    let config = layout.blob(CONFIG, &config);
    let packed = layout.blob(&format!("{LAYER}+gzip"), &super::maker::gzip(&tar));
    let packed = layout.manifest(&config, &json!([packed]));
    assert_eq!(taken(&layout.tar(&[image.clone(), packed])), digest(&image));
    // docker save.
    let words = json!({"rootfs": {"diff_ids": [format!("sha256:{}", sha256(&tar))]}}).to_string();
    let saved = |tag: &str| json!({"Config": "c.json", "RepoTags": [tag], "Layers": ["l.tar"]});
    let manifest = json!([saved("app:1"), saved("app:2")]).to_string();
    let files = [("c.json", words.into_bytes()), ("l.tar", tar), ("manifest.json", manifest.into_bytes())];
    let archive = pack(&files.map(|(name, data)| (name.to_owned(), data)));
    for reference in [None, Some("app:1"), Some("app:2")] {
        assert_eq!(imported(&archive, reference).unwrap().source, SourceKind::Docker, "{reference:?}");
    }
}

#[test]
fn the_words_for_a_platform_are_written_in_many_ways() {
    let words = [
        json!({"os": "linux", "architecture": "x86_64"}),
        json!({"os": "Linux", "architecture": "AMD64"}),
        json!({"os": "linux", "architecture": "x86-64"}),
        json!({"os": "", "architecture": ""}),
        json!({"os": null, "architecture": null, "variant": null}),
        json!({"architecture": "amd64"}),
        json!({"os": "linux"}),
        json!({}),
    ];
    for words in words {
        let mut layout = Layout::default();
        let image = layout.image("x");
        assert_eq!(taken(&layout.tar(&[on(image.clone(), words.clone())])), digest(&image), "{words}");
        let image = layout.image_for("y", words.clone(), CONFIG);
        assert_eq!(taken(&layout.tar(&[amd64(&image, "")])), digest(&image), "{words}");
        // The oldest form of an image says it beside each layer.
        let chain = [
            ("repositories", r#"{"app": {"1": "a"}}"#.to_owned().into_bytes()),
            ("a/json", words.to_string().into_bytes()),
            ("a/layer.tar", Tar::default().file("etc/x", b"1").end()),
        ];
        let chain = pack(&chain.map(|(name, data)| (name.to_owned(), data)));
        assert_eq!(imported(&chain, None).unwrap().source, SourceKind::Docker, "{words}");
    }
    // An index that says nothing leaves it to the configuration.
    let mut layout = Layout::default();
    let image = layout.image_for("x", json!({"os": "linux", "architecture": "aarch64"}), CONFIG);
    let error = import_error(&layout.tar(&[on(image, json!({}))])).to_string();
    assert!(error.contains("it is for linux/arm64"), "{error}");
}

/// What docker's own registry said for years of all that was pushed to it.
#[test]
fn a_configuration_may_have_the_types_of_old_pushes() {
    for kind in ["application/octet-stream", "application/json", "text/html", ""] {
        let mut layout = Layout::default();
        let image = layout.image_for("x", json!({}), kind);
        assert_eq!(taken(&layout.tar(std::slice::from_ref(&image))), digest(&image), "{kind}");
    }
}

#[test]
fn what_cannot_be_read_beside_an_image_is_passed_over() {
    let mut layout = Layout::default();
    let image = layout.image("x");
    let text = layout.blob("text/plain", b"no JSON");
    let list = layout.blob("application/json", b"[]");
    let large = layout.blob("application/octet-stream", &vec![b' '; (4 << 20) + 1]);
    let sha512 = json!({"mediaType": "x/y", "digest": format!("sha512:{}", "0".repeat(128)), "size": 1});
    let nothing = json!({"mediaType": "x/y", "annotations": {"x": null}});
    let mut sized = text.clone();
    sized["size"] = json!(-1);
    for (odd, words) in [
        (text, "expected"),
        (list, "invalid"),
        (large, "4 MiB"),
        (sha512, "is not a sha256 digest"),
        (nothing, "is not a sha256 digest"),
        (Value::Null, "is not a sha256 digest"),
        (sized, "expected"),
    ] {
        assert_eq!(taken(&layout.tar(&[odd.clone(), image.clone()])), digest(&image), "{words}");
        let error = import_error(&layout.tar(&[odd])).to_string();
        assert!(error.contains(words), "{words}: {error}");
    }
}

/// The archive with everything in a folder.
fn in_folder(folder: &str, files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let files: Vec<_> = files.iter().map(|(name, data)| (format!("{folder}/{name}"), data.clone())).collect();
    pack(&files)
}

#[test]
fn an_image_that_is_packed_otherwise_is_named_and_is_no_root() {
    let mut layout = Layout::default();
    let image = layout.image("x");
    let layout = layout.files(&[image]);
    let file = |name: &str, text: &str| (name.to_owned(), text.to_owned().into_bytes());
    let dir = json!({"schemaVersion": 2, "config": {}, "layers": []}).to_string();
    let dir = [file("manifest.json", &dir), file("version", "Directory Transport Version: 1.1\n")];
    let damaged = [file("manifest.json", "[{\"Config\": 5}]")];
    let chain = [file("repositories", "[]")];
    for (archive, words, advice) in [
        (in_folder("app", &layout), "an OCI layout", "tar -C \"app\" -cf image.tar ."),
        (in_folder("home/app", &layout), "an OCI layout", "tar -C \"home/app\" -cf image.tar ."),
        (pack(&dir), "dir:", "skopeo copy dir:FOLDER oci-archive:image.tar"),
        (in_folder("app", &dir), "manifest.json", "tar -C \"app\" -cf image.tar ."),
        (in_folder("app", &chain), "repositories", "tar -C \"app\" -cf image.tar ."),
        (pack(&damaged), "manifest.json: invalid type", ""),
        (pack(&chain), "repositories: invalid type", ""),
    ] {
        let error = import_error(&archive).to_string();
        assert!(error.contains(words) && error.contains(advice), "{words}: {error}");
    }
    // A root file system may have such files, wherever they are.
    for files in [&layout[..], &dir, &damaged, &chain] {
        for archive in [pack(files), in_folder("srv", files)] {
            let root = Tar::default().file("etc/x", b"").0;
            let imported = imported(&[root, archive].concat(), None).unwrap();
            assert_eq!(imported.source, SourceKind::Tar);
        }
    }
}

/// Of an image that is fetched by its digest, the size need not be said.
#[test]
fn a_size_may_be_missing_and_a_name_may_be_null() {
    let mut layout = Layout::default();
    let tar = Tar::default().file("etc/x", b"1").end();
    let words = json!({"rootfs": {"diff_ids": [format!("sha256:{}", sha256(&tar))]}});
    let [config, layer] = [(CONFIG, words.to_string().as_bytes()), (LAYER, &tar)].map(|(kind, data)| {
        let mut said = layout.blob(kind, data);
        said["size"] = Value::Null;
        said
    });
    let mut image = layout.manifest(&config, &json!([layer]));
    image["size"] = Value::Null;
    image["annotations"] = json!({"org.opencontainers.image.ref.name": null, "x": null});
    assert_eq!(taken(&layout.tar(std::slice::from_ref(&image))), digest(&image));
}

/// The object with every name of a field written otherwise.
fn renamed(value: &Value, other: fn(&str) -> String) -> Value {
    match value {
        Value::Object(fields) => fields.iter().map(|(name, value)| (other(name), renamed(value, other))).collect(),
        Value::Array(values) => values.iter().map(|value| renamed(value, other)).collect(),
        other => other.clone(),
    }
}

/// As users of Nix write a configuration, which is passed on as it is.
#[test]
fn names_of_fields_have_any_case_in_every_part_of_an_image() {
    for other in [|name: &str| name.to_ascii_uppercase(), |name: &str| name.to_ascii_lowercase()] {
        let mut layout = Layout::default();
        let tar = Tar::default().file("etc/x", b"1").end();
        let words = json!({"os": "linux", "architecture": "amd64", "config": {"User": "app", "WorkingDir": "/w"},
            "rootfs": {"diff_ids": [format!("sha256:{}", sha256(&tar))]}});
        let words = renamed(&words, other).to_string();
        let (config, layer) = (layout.blob(CONFIG, words.as_bytes()), layout.blob(LAYER, &tar));
        let manifest = renamed(&json!({"schemaVersion": 2, "config": config, "layers": [layer]}), other);
        let image = layout.blob("application/vnd.oci.image.manifest.v1+json", manifest.to_string().as_bytes());
        let foreign = on(image.clone(), json!({"os": "linux", "architecture": "arm64"}));
        let index = renamed(&json!({"manifests": [foreign, amd64(&image, "v1")]}), other).to_string();
        let mut files = layout.files(&[]);
        files.retain(|(name, _)| name != "index.json");
        files.push(("index.json".to_owned(), index.into_bytes()));
        let imported = imported(&pack(&files), None).unwrap();
        assert_eq!(imported.source_digest.to_string(), digest(&image));
        assert_eq!(
            (imported.config.user.as_deref(), imported.config.working_dir.as_deref()),
            (Some("app"), Some("/w"))
        );
    }
}

/// What `tar -S` makes of a blob that the file system stores with holes.
#[test]
fn a_blob_may_be_packed_without_its_holes() {
    let mut layout = Layout::default();
    let tar = Tar::default().file("etc/x", &[0; 40_000]).end();
    let words = json!({"rootfs": {"diff_ids": [format!("sha256:{}", sha256(&tar))]}}).to_string();
    let (config, layer) = (layout.blob(CONFIG, words.as_bytes()), layout.blob(LAYER, &tar));
    let image = layout.manifest(&config, &json!([layer]));
    let path = format!("blobs/sha256/{}", digest(&layer));
    // Its header is all that it has beside zeros.
    let blob = Tar::default().add(&Item { data: &tar[..512], ..item(b'S', &path) }).0;
    let sparse = |size: usize| {
        changed(blob.clone(), 0, |header| {
            for (at, number) in [(386, 0), (398, 512), (410, size), (422, 0), (483, size)] {
                header[at..at + 12].copy_from_slice(format!("{number:011o}\0").as_bytes());
            }
        })
    };
    let rest = layout.without(&layer).tar(std::slice::from_ref(&image));
    assert_eq!(taken(&[sparse(tar.len()), rest.clone()].concat()), digest(&image));
    let large = import_error(&[sparse(1 << 30), rest.clone()].concat());
    assert!(matches!(large, ImageError::TooLarge { .. }), "{large}");
    let short = import_error(&[sparse(tar.len() - 512), rest].concat());
    assert!(matches!(short, ImageError::Blob { what: "size", .. }), "{short}");
}

/// Go's JSON heeds no case, and so writers get away with any.
#[test]
fn the_keys_of_a_saved_manifest_have_any_case() {
    let tar = Tar::default().file("etc/x", b"1").end();
    let words = json!({"rootfs": {"diff_ids": [format!("sha256:{}", sha256(&tar))]}}).to_string();
    for keys in [["config", "repotags", "layers"], ["CONFIG", "repoTags", "LAYERS"], ["Config", "RepoTags", "Layers"]] {
        let [config, tags, layers] = keys;
        let manifest = json!([{config: "c.json", tags: ["app:1"], layers: ["l.tar"], "Parent": {"x": 1}}]).to_string();
        let files =
            [("c.json", words.clone().into_bytes()), ("l.tar", tar.clone()), ("manifest.json", manifest.into())];
        let archive = pack(&files.map(|(name, data)| (name.to_owned(), data)));
        assert_eq!(imported(&archive, Some("app:1")).unwrap().source, SourceKind::Docker, "{config}");
    }
}
