#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
use super::*;

fn path(text: &str) -> EntryPath {
    EntryPath::parse(text.as_bytes()).unwrap()
}

fn file(size: u64) -> NodeKind {
    NodeKind::File(Content { window: 0, offset: 0, size })
}

fn put(tree: &mut Tree, name: &str, kind: NodeKind) -> Result<(), TreeError> {
    tree.put(&path(name), kind, IMPLICIT, Box::default())
}

fn get(tree: &mut Tree, name: &str) -> Option<NodeId> {
    let path = path(name);
    let (parent, name) = path.split().unwrap();
    let dir = tree.find_dir(parent).ok().flatten()?;
    tree.child(dir, name)
}

#[test]
fn symlinked_parents_are_followed_inside_the_tree() {
    let mut tree = Tree::new();
    put(&mut tree, "usr/lib", NodeKind::Dir(Names::new())).unwrap();
    put(&mut tree, "lib", NodeKind::Symlink(b"/usr/lib"[..].into())).unwrap();
    put(&mut tree, "out", NodeKind::Symlink(b"../../../../../etc"[..].into())).unwrap();
    put(&mut tree, "lib/x.so", file(1)).unwrap();
    put(&mut tree, "out/passwd", file(2)).unwrap();
    assert!(get(&mut tree, "usr/lib/x.so").is_some(), "as any container runtime does");
    assert!(get(&mut tree, "etc/passwd").is_some(), "the image's own /etc");
}

#[test]
fn folders_that_a_links_target_asks_for_have_names_that_are_allowed() {
    for target in [vec![b'x'; 256], b"a/b\nc".to_vec(), b"\xff\x07".to_vec()] {
        let mut tree = Tree::new();
        put(&mut tree, "l", NodeKind::Symlink(target.into())).unwrap();
        assert!(matches!(put(&mut tree, "l/x", file(0)), Err(TreeError::Name(_))));
    }
}

#[test]
fn loops_and_files_on_the_path_are_errors() {
    let mut tree = Tree::new();
    put(&mut tree, "a", NodeKind::Symlink(b"b"[..].into())).unwrap();
    put(&mut tree, "b", NodeKind::Symlink(b"a"[..].into())).unwrap();
    assert_eq!(put(&mut tree, "a/x", file(0)), Err(TreeError::SymlinkLoop));
    put(&mut tree, "f", file(0)).unwrap();
    assert_eq!(put(&mut tree, "f/x", file(0)), Err(TreeError::NotADirectory("f".into())));
    assert_eq!(put(&mut tree, ".", file(0)), Err(TreeError::Root));
}

#[test]
fn hard_links_share_a_node_and_survive_each_other() {
    let mut tree = Tree::new();
    put(&mut tree, "d/a", file(5)).unwrap();
    tree.link(&path("b"), &path("d/a")).unwrap();
    assert_eq!(get(&mut tree, "b"), get(&mut tree, "d/a"));
    tree.remove(Tree::ROOT, b"d");
    let b = get(&mut tree, "b").unwrap();
    assert_eq!(tree.node(b).links, 1);
    tree.link(&path("b"), &path("b")).unwrap();
    assert_eq!(tree.node(b).links, 1, "a link to itself changes nothing");
    assert!(matches!(tree.link(&path("c"), &path("d/a")), Err(TreeError::LinkTargetMissing(_))));
    put(&mut tree, "e", NodeKind::Dir(Names::new())).unwrap();
    assert!(matches!(tree.link(&path("c"), &path("e")), Err(TreeError::LinkToDirectory(_))));
}

#[test]
fn a_deep_tree_is_removed_without_recursion() {
    let mut tree = Tree::new();
    let mut dir = Tree::ROOT;
    for _ in 0..2_000 {
        dir = tree.insert(dir, b"d", NodeKind::Dir(Names::new()), IMPLICIT, Box::default()).unwrap();
    }
    tree.remove(Tree::ROOT, b"d");
    assert!(get(&mut tree, "d").is_none());
}

/// Each entry's own path is short; the links before it make the real one long.
#[test]
fn no_path_grows_through_links_beyond_what_a_program_can_open() {
    let mut tree = Tree::new();
    let step = "d".repeat(200);
    put(&mut tree, "l0", NodeKind::Dir(Names::new())).unwrap();
    let refused = (0..1_000).find_map(|number| {
        put(&mut tree, &format!("l{number}/{step}"), NodeKind::Dir(Names::new())).err().or_else(|| {
            let target = format!("l{number}/{step}");
            put(&mut tree, &format!("l{}", number + 1), NodeKind::Symlink(target.into_bytes().into())).err()
        })
    });
    // Forty links deep the kernel gives up as well; whichever limit comes first ends it.
    assert!(matches!(refused, Some(TreeError::PathTooLong | TreeError::SymlinkLoop)), "{refused:?}");
    let longest = tree.nodes.iter().map(|node| node.path_bytes).max().unwrap();
    assert!(longest as usize <= MAX_PATH, "{longest}");
    // Absolute links start again at the root, so that only the length of the path ends it.
    let mut tree = Tree::new();
    let mut below = String::new();
    let refused = (0..1_000).find_map(|number| {
        below = format!("{below}/{step}");
        let here = format!("l{number}");
        let made = put(&mut tree, &format!("{here}x/{step}"), NodeKind::Dir(Names::new()));
        made.err().or_else(|| {
            let next = format!("l{}x", number + 1);
            put(&mut tree, &next, NodeKind::Symlink(format!("/{here}x/{step}").into_bytes().into())).err()
        })
    });
    assert!(refused.is_some());
    assert!(tree.nodes.iter().all(|node| node.path_bytes as usize <= MAX_PATH));
}

#[test]
fn a_hard_link_is_measured_like_any_name() {
    let mut tree = Tree::new();
    put(&mut tree, "file", file(0)).unwrap();
    let mut dir = Tree::ROOT;
    for _ in 0..20 {
        dir = tree
            .insert(dir, "d".repeat(200).as_bytes(), NodeKind::Dir(Names::new()), IMPLICIT, Box::default())
            .unwrap();
    }
    assert_eq!(tree.path_bytes(dir, "x".repeat(200).as_bytes()), Err(TreeError::PathTooLong));
    assert_eq!(tree.path_bytes(dir, b"x"), Ok(20 * 201 + 1));
}

fn names(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    let mut todo = vec![(Tree::ROOT, String::new())];
    while let Some((id, at)) = todo.pop() {
        if let NodeKind::Dir(children) = &tree.node(id).kind {
            for (name, child) in children {
                let path = format!("{at}{}", String::from_utf8_lossy(name));
                todo.push((child.id, format!("{path}/")));
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// A layer below with `d/old`, `d/sub/old`, the file `f` and the link `l` to `d`; then another
/// layer.
fn two_layers() -> Tree {
    let mut tree = Tree::new();
    put(&mut tree, "d/old", file(1)).unwrap();
    put(&mut tree, "d/sub/old", file(1)).unwrap();
    put(&mut tree, "f", file(1)).unwrap();
    put(&mut tree, "l", NodeKind::Symlink(b"d"[..].into())).unwrap();
    tree.next_layer();
    tree
}

#[test]
fn a_layer_hides_what_is_below_it_and_never_what_it_brings() {
    for first in [true, false] {
        let mut tree = two_layers();
        if first {
            tree.hide(b"", b"d");
        }
        put(&mut tree, "d/sub/new", file(2)).unwrap();
        if !first {
            tree.hide(b"", b"d");
        }
        assert_eq!(names(&tree), ["d", "d/sub", "d/sub/new", "f", "l"], "first: {first}");
        tree.hide_all(b"d");
        tree.hide_all(b"d/sub");
        assert_eq!(names(&tree).len(), 5);
    }
}

#[test]
fn nothing_is_hidden_through_a_link_of_a_layer_below() {
    let mut tree = two_layers();
    tree.hide_all(b"l");
    tree.hide(b"l", b"old");
    tree.hide(b"f", b"x");
    tree.hide_all(b"nothing/here");
    assert_eq!(names(&tree), ["d", "d/old", "d/sub", "d/sub/old", "f", "l"]);
    // The link becomes a folder, and hides what the link showed: nothing of that is below it.
    put(&mut tree, "l", NodeKind::Dir(Names::new())).unwrap();
    tree.hide_all(b"l");
    put(&mut tree, "f", NodeKind::Dir(Names::new())).unwrap();
    tree.hide_all(b"f");
    assert_eq!(names(&tree), ["d", "d/old", "d/sub", "d/sub/old", "f", "l"]);
    tree.hide(b"d", b"sub");
    tree.hide(b"", b"l");
    tree.next_layer();
    tree.hide(b"", b"l");
    assert_eq!(names(&tree), ["d", "d/old", "f"]);
}
