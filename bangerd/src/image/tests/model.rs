//! Layers against a model that is too simple to be wrong: a map from path to content, in which each rule of the
//! image specification is one line.

use super::super::layers::{Layer, apply};
use super::super::source::Budget;
use super::super::tree::{NodeId, NodeKind, Tree};
use super::maker::{Item, Tar, item, window_of};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// What stands at a path: a folder with its mode, or a file with its mode and content.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Thing {
    Dir(u16),
    File(u16, Vec<u8>),
}

type Model = BTreeMap<String, Thing>;

#[derive(Clone, Debug)]
enum Op {
    Dir(String, u16),
    File(String, u16, u8),
    Whiteout(String),
    Opaque(String),
}

fn below<'a>(model: &'a Model, dir: &'a str) -> impl Iterator<Item = String> + 'a {
    let prefix = if dir.is_empty() { String::new() } else { format!("{dir}/") };
    model.keys().filter(move |key| key.starts_with(&prefix) && !key.is_empty()).cloned()
}

fn remove(model: &mut Model, path: &str) {
    let gone: Vec<String> = below(model, path).collect();
    gone.iter().for_each(|key| drop(model.remove(key)));
    model.remove(path);
}

fn parents(path: &str) -> Vec<String> {
    let parts: Vec<&str> = path.split('/').collect();
    (1..parts.len()).map(|n| parts[..n].join("/")).collect()
}

/// False when the layer is one that must be refused: an entry below a file.
fn apply_model(model: &mut Model, ops: &[Op]) -> bool {
    let is_file = |model: &Model, path: &String| matches!(model.get(path), Some(Thing::File(..)));
    for op in ops {
        let (Op::Whiteout(path) | Op::Opaque(path)) = op else {
            continue;
        };
        let walked =
            if matches!(op, Op::Opaque(_)) { [parents(path), vec![path.clone()]].concat() } else { parents(path) };
        // Nothing is hidden below what is no folder; below a file, the layer is not a layer of this image.
        if walked.iter().any(|p| is_file(model, p)) {
            return false;
        }
        match op {
            Op::Whiteout(path) => remove(model, path),
            _ => below(model, path).collect::<Vec<_>>().iter().for_each(|key| drop(model.remove(key))),
        }
    }
    for op in ops {
        let (Op::Dir(path, _) | Op::File(path, ..)) = op else {
            continue;
        };
        for parent in parents(path) {
            if is_file(model, &parent) {
                return false;
            }
            model.entry(parent).or_insert(Thing::Dir(0o755));
        }
        match op {
            Op::Dir(path, mode) => {
                model.insert(path.clone(), Thing::Dir(*mode));
            }
            Op::File(path, mode, byte) => {
                remove(model, path);
                model.insert(path.clone(), Thing::File(*mode, vec![*byte; 3]));
            }
            Op::Whiteout(_) | Op::Opaque(_) => {}
        }
    }
    true
}

fn tar_of(ops: &[Op]) -> Vec<u8> {
    let sibling =
        |path: &str, name: String| path.rsplit_once('/').map_or(name.clone(), |(dir, _)| format!("{dir}/{name}"));
    ops.iter()
        .fold(Tar::default(), |tar, op| match op {
            Op::Dir(path, mode) => tar.add(&Item { mode: u32::from(*mode), ..item(b'5', path) }),
            Op::File(path, mode, byte) => {
                tar.add(&Item { mode: u32::from(*mode), data: &[*byte; 3], ..item(b'0', path) })
            }
            Op::Whiteout(path) => {
                let name = path.rsplit('/').next().unwrap();
                tar.file(&sibling(path, format!(".wh.{name}")), b"")
            }
            Op::Opaque(path) => tar.file(&format!("{path}/.wh..wh..opq"), b""),
        })
        .end()
}

fn flatten(tree: &Tree, layers: &[Layer]) -> Model {
    let mut model = Model::new();
    let mut todo: Vec<(NodeId, String)> = vec![(Tree::ROOT, String::new())];
    while let Some((id, path)) = todo.pop() {
        let node = tree.node(id);
        let thing = match &node.kind {
            NodeKind::Dir(children) => {
                todo.extend(children.iter().map(|(name, child)| {
                    let path = if path.is_empty() { name.to_string() } else { format!("{path}/{name}") };
                    (*child, path)
                }));
                Thing::Dir(node.meta.mode)
            }
            NodeKind::File(content) => {
                let window = layers[content.window].window.part(content.offset, content.size).unwrap();
                Thing::File(node.meta.mode, window.read_all().unwrap())
            }
            other => unreachable!("{other:?}"),
        };
        model.insert(path, thing);
    }
    model.remove("");
    model
}

/// Few names, so that layers meet.
fn path() -> impl Strategy<Value = String> {
    proptest::collection::vec(prop_oneof!["a", "b", "c"], 1..4).prop_map(|parts| parts.join("/"))
}

fn op() -> impl Strategy<Value = Op> {
    let mode = prop_oneof![Just(0o755_u16), Just(0o700), Just(0o4750)];
    prop_oneof![
        3 => (path(), mode.clone()).prop_map(|(path, mode)| Op::Dir(path, mode)),
        4 => (path(), mode, any::<u8>()).prop_map(|(path, mode, byte)| Op::File(path, mode, byte)),
        2 => path().prop_map(Op::Whiteout),
        1 => path().prop_map(Op::Opaque),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn layers_do_what_the_model_does(image in proptest::collection::vec(proptest::collection::vec(op(), 0..8), 1..5)) {
        let mut model = Model::new();
        let mut tree = Tree::new();
        let mut layers = Vec::new();
        for (number, ops) in image.iter().enumerate() {
            let name = format!("layer {number}");
            let layer = Layer { window: window_of(&tar_of(ops)), name, whiteouts: true, strict_end: false };
            let result = apply(&mut tree, &layer, number, &mut Budget::new(u64::MAX, u64::MAX), &());
            layers.push(layer);
            let expected = apply_model(&mut model, ops);
            prop_assert_eq!(result.is_ok(), expected, "{:?}", result);
            if !expected {
                return Ok(());
            }
            prop_assert_eq!(flatten(&tree, &layers), model.clone());
        }
    }
}
