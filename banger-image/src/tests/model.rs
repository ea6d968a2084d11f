//! Layers against a model that is too simple to be wrong: a map from path to content, in which each
//! rule of the image specification is one line.

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

/// With the number of the layer that has put it there.
type Model = BTreeMap<String, (Thing, usize)>;

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

fn is_file(model: &Model, path: &str) -> bool {
    matches!(model.get(path), Some((Thing::File(..), _)))
}

/// Takes away what layers below `layer` have put at these paths. A folder of theirs in which this
/// layer has something stays, as one that nobody described.
fn hide(model: &mut Model, mut paths: Vec<String>, layer: usize) {
    paths.sort();
    // The deepest first.
    for path in paths.into_iter().rev() {
        let used = below(model, &path).next().is_some();
        match model.get_mut(&path) {
            Some((thing @ Thing::Dir(_), by)) if *by != layer && used => *thing = Thing::Dir(0o755),
            Some((_, by)) if *by != layer => drop(model.remove(&path)),
            _ => {}
        }
    }
}

/// False when the layer is one that must be refused: an entry below a file.
fn apply_model(model: &mut Model, ops: &[Op], layer: usize) -> bool {
    for op in ops {
        match op {
            Op::Whiteout(path) => {
                if !parents(path).iter().any(|parent| is_file(model, parent)) {
                    let hidden = below(model, path).chain([path.clone()]).collect();
                    hide(model, hidden, layer);
                }
            }
            Op::Opaque(path) => {
                let hidden = below(model, path).collect();
                hide(model, hidden, layer);
            }
            Op::Dir(path, _) | Op::File(path, ..) => {
                for parent in parents(path) {
                    if is_file(model, &parent) {
                        return false;
                    }
                    model.entry(parent).or_insert((Thing::Dir(0o755), layer));
                }
                match op {
                    Op::File(path, mode, byte) => {
                        remove(model, path);
                        model.insert(path.clone(), (Thing::File(*mode, vec![*byte; 3]), layer));
                    }
                    Op::Dir(path, mode) => drop(model.insert(path.clone(), (Thing::Dir(*mode), layer))),
                    Op::Whiteout(_) | Op::Opaque(_) => {}
                }
            }
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

fn flatten(tree: &Tree, layers: &[Layer]) -> BTreeMap<String, Thing> {
    let mut model = BTreeMap::new();
    let mut todo: Vec<(NodeId, String)> = vec![(Tree::ROOT, String::new())];
    while let Some((id, path)) = todo.pop() {
        let node = tree.node(id);
        let thing = match &node.kind {
            NodeKind::Dir(children) => {
                todo.extend(children.iter().map(|(name, child)| {
                    let name = String::from_utf8_lossy(name);
                    let path = if path.is_empty() { name.to_string() } else { format!("{path}/{name}") };
                    (child.id, path)
                }));
                Thing::Dir(node.meta.mode)
            }
            NodeKind::File(content) => {
                let window = layers[content.window as usize].window.part(content.offset, content.size).unwrap();
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
            let layer = Layer { window: window_of(&tar_of(ops)), name, whiteouts: true };
            let result = apply(&mut tree, &layer, u32::try_from(number).unwrap(), &mut Budget::new(u64::MAX, u64::MAX), &());
            layers.push(layer);
            let expected = apply_model(&mut model, ops, number);
            prop_assert_eq!(result.is_ok(), expected, "{:?}", result);
            if !expected {
                return Ok(());
            }
            let flat: BTreeMap<String, Thing> =
                model.iter().map(|(path, (thing, _))| (path.clone(), thing.clone())).collect();
            prop_assert_eq!(flatten(&tree, &layers), flat);
        }
    }
}
