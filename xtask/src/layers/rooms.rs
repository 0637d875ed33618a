//! The folders of a crate as rooms, the imports between them, and the circles that these make.
//!
//! A module is a room with all that is below it; beside its children's rooms it has one for its own file. So a circle
//! of files is a circle of the rooms of the folder that holds them all.
//!
//! A module may use what its parent's file defines, as Rust's `super::` is meant, and this ties no circle. The root of
//! a crate is no such parent: all of the crate would be one room.

use super::{imports::Import, source::Source};
use petgraph::{algo::tarjan_scc, graph::DiGraph};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// The imports between two rooms.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Arrow {
    pub(super) from: String,
    pub(super) to: String,
    pub(super) imports: Vec<Import>,
    /// Whether it leads to the file of the parent, which is never upward.
    pub(super) to_parent: bool,
}

/// The rooms of one folder.
#[derive(Debug)]
pub(super) struct Floor {
    /// The folder's module: `crate`, `crate::report`.
    pub(super) module: String,
    /// The rooms from the top down, each with those that it makes a circle with.
    pub(super) rooms: Vec<Vec<String>>,
    pub(super) arrows: Vec<Arrow>,
}

impl Floor {
    /// The circles, and the arrows that tie each.
    pub(super) fn circles(&self) -> impl Iterator<Item = (&[String], Vec<&Arrow>)> {
        let circles = self.rooms.iter().filter(|rooms| rooms.len() > 1);
        circles.map(|rooms| {
            let within = |arrow: &&Arrow| {
                !arrow.to_parent && rooms.contains(&arrow.from) && rooms.contains(&arrow.to)
            };
            (
                rooms.as_slice(),
                self.arrows.iter().filter(within).collect(),
            )
        })
    }
}

/// Imports by the rooms that they go from and to, and by whether they go to the parent.
type Arrows = BTreeMap<(String, String, bool), Vec<Import>>;

/// The folders of a crate, the crate itself first.
pub(super) fn floors(source: &Source, imports: Vec<Import>) -> Vec<Floor> {
    let paths = module_paths(source);
    // By folder, and by the rooms that an import goes from and to.
    let mut folders: BTreeMap<&[String], Arrows> = BTreeMap::new();
    for import in imports {
        let (from, to) = (&paths[&import.from], &paths[&import.to]);
        let common = from.iter().zip(to).take_while(|(a, b)| a == b).count();
        let room = |path: &[String], file: &Path| match path.get(common) {
            Some(name) => name.clone(),
            None => file
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
        };
        let to_parent = common > 0 && to.len() == common;
        let arrow = (room(from, &import.from), room(to, &import.to), to_parent);
        let folder = folders.entry(&from[..common]).or_default();
        folder.entry(arrow).or_default().push(import);
    }
    let floor = |(path, arrows): (&[String], Arrows)| {
        let arrows: Vec<Arrow> = arrows
            .into_iter()
            .map(|((from, to, to_parent), imports)| Arrow {
                from,
                to,
                imports,
                to_parent,
            })
            .collect();
        Floor {
            module: [&["crate".to_owned()], path].concat().join("::"),
            rooms: from_the_top(&arrows),
            arrows,
        }
    };
    folders.into_iter().map(floor).collect()
}

/// The path of each file's module in its crate; a module that is inside a file counts as the file's.
fn module_paths(source: &Source) -> BTreeMap<PathBuf, Vec<String>> {
    let mut paths: BTreeMap<PathBuf, Vec<String>> = BTreeMap::new();
    let mut open = vec![(0, Vec::new())];
    while let Some((index, path)) = open.pop() {
        let module = &source.modules[index];
        for (name, child) in &module.children {
            open.push((
                *child,
                [path.as_slice(), std::slice::from_ref(name)].concat(),
            ));
        }
        let known = paths
            .entry(module.file.clone())
            .or_insert_with(|| path.clone());
        if path.len() < known.len() {
            *known = path;
        }
    }
    paths
}

/// The rooms so that each stands above all that it imports; those of a circle stand together.
fn from_the_top(arrows: &[Arrow]) -> Vec<Vec<String>> {
    let mut graph = DiGraph::<&str, ()>::new();
    let mut nodes = BTreeMap::new();
    for arrow in arrows {
        let [from, to] = [&arrow.from, &arrow.to]
            .map(|room| *nodes.entry(room).or_insert_with(|| graph.add_node(room)));
        if !arrow.to_parent {
            graph.add_edge(from, to, ());
        }
    }
    // Tarjan's algorithm gives what is imported before what imports it.
    let mut rooms: Vec<Vec<String>> = tarjan_scc(&graph)
        .into_iter()
        .map(|circle| {
            circle
                .into_iter()
                .map(|node| graph[node].to_owned())
                .collect()
        })
        .collect();
    rooms.reverse();
    for circle in &mut rooms {
        circle.sort();
    }
    rooms
}
