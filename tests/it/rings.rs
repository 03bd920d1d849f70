//! Asserts that no files of `src` import each other in a ring, read from the sources.
//!
//! An import leads from the file that names an item to the file that defines it. The test follows re-exports, and
//! leaves out tests and their support. A file in a folder may name the folder's own file (`mod.rs`), because it may
//! extend that file's types (`impl Engine` in `engine/answers/mod.rs`). Every other ring is a fault.

use std::collections::{BTreeMap, BTreeSet};

use super::layering::{Source, sources};

/// The path of a module below the crate.
type Module = Vec<String>;

/// The modules of `src` without tests, with their code (without comments) and the names that they re-export.
struct Crate {
    code: BTreeMap<Module, String>,
    exported: BTreeMap<(Module, String), Vec<String>>,
}

fn module(source: &Source) -> Module {
    let path = source.path.trim_end_matches(".rs");
    let path = path.strip_suffix("/mod").unwrap_or(path);
    if path == "lib" || path == "main" { Vec::new() } else { path.split('/').map(str::to_owned).collect() }
}

/// Splits `a::{b, c::d}` into `a::b` and `a::c::d`.
fn expanded(tree: &str) -> Vec<String> {
    let Some((before, inside)) = tree.split_once('{') else { return vec![tree.trim().to_owned()] };
    let inside = inside.trim_end().strip_suffix('}').expect("a group of imports ends");
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (at, c) in inside.char_indices().chain([(inside.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&inside[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    let parts = parts.into_iter().filter(|part| !part.trim().is_empty());
    parts.flat_map(|part| expanded(part.trim())).map(|part| format!("{}{part}", before.trim_start())).collect()
}

/// The imports of a file, each with its name there, and true if others may take it from there.
fn imports(code: &str) -> Vec<(bool, String, String)> {
    let mut imports = Vec::new();
    let mut at = 0;
    for line in code.split_inclusive('\n') {
        let start = at;
        at += line.len();
        let is_public = line.starts_with("pub use ") || line.starts_with("pub(");
        let Some((before, _)) = line.split_once("use ") else { continue };
        if !(before.is_empty() || before == "pub " || before.starts_with("pub(") && before.ends_with(") ")) {
            continue;
        }
        let tree = code[start + before.len() + "use ".len()..].split(';').next().unwrap_or_default();
        for path in expanded(tree) {
            let (path, name) = path.split_once(" as ").map_or((path.as_str(), None), |(path, name)| (path, Some(name)));
            let name = name.or(path.rsplit("::").next()).unwrap_or_default().to_owned();
            imports.push((is_public, path.trim_end_matches("::self").to_owned(), name));
        }
    }
    imports
}

/// Returns the paths that a file's code names.
fn paths(code: &str) -> impl Iterator<Item = &str> {
    let words = code.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
    words.map(|word| word.trim_matches(':')).filter(|word| word.contains("::"))
}

impl Crate {
    fn read() -> Crate {
        let sources = sources();
        let tests: BTreeSet<Module> = sources.iter().flat_map(test_modules).collect();
        let is_test = |module: &Module| (1..=module.len()).any(|n| tests.contains(&module[..n]));
        let code = sources.iter().map(|source| (module(source), without_tests(source)));
        let code: BTreeMap<Module, String> = code.filter(|(module, _)| !is_test(module)).collect();
        let exported = code.iter().flat_map(|(module, code)| {
            let public = imports(code).into_iter().filter(|(is_public, _, _)| *is_public);
            public.map(|(_, path, name)| ((module.clone(), name), path.split("::").map(str::to_owned).collect()))
        });
        let exported = exported.collect();
        Crate { code, exported }
    }

    /// Returns the path of an item from the crate's root, or `None` if the item is not of this crate.
    fn absolute(&self, from: &Module, path: &[String]) -> Option<Vec<String>> {
        let supers = path.iter().take_while(|part| *part == "super").count();
        match path.first()?.as_str() {
            "crate" => Some(path[1..].to_vec()),
            "self" => Some(from.iter().chain(&path[1..]).cloned().collect()),
            "super" => Some(from[..from.len().saturating_sub(supers)].iter().chain(&path[supers..]).cloned().collect()),
            first => {
                let child: Module = from.iter().cloned().chain([first.to_owned()]).collect();
                self.code.contains_key(&child).then(|| from.iter().chain(path).cloned().collect())
            }
        }
    }

    /// Returns the file that defines an item, given the item's path from the crate's root.
    fn definer(&self, path: &[String], hops: usize) -> Option<Module> {
        let module = (0..=path.len()).rev().map(|n| path[..n].to_vec()).find(|path| self.code.contains_key(path))?;
        let exported = path.get(module.len()).and_then(|name| self.exported.get(&(module.clone(), name.clone())));
        let further = exported.filter(|_| hops < 5).and_then(|path| self.absolute(&module, path));
        further.and_then(|path| self.definer(&path, hops + 1)).or(Some(module))
    }

    /// Returns for each file the other files whose items it names, except the `mod.rs` of the folders that it is in.
    fn edges(&self) -> BTreeMap<&Module, BTreeSet<Module>> {
        let edges = self.code.iter().map(|(from, code)| {
            let imported = imports(code).into_iter().filter(|(is_public, _, _)| !is_public).map(|(_, path, _)| path);
            let named = imported.chain(paths(code).map(str::to_owned)).filter_map(|path| {
                let path: Vec<String> = path.split("::").map(|part| part.trim().to_owned()).collect();
                self.definer(&self.absolute(from, &path)?, 0)
            });
            (from, named.filter(|to| !from.starts_with(to)).collect())
        });
        edges.collect()
    }
}

/// Returns the modules that a file declares only for tests.
fn test_modules(source: &Source) -> Vec<Module> {
    let lines: Vec<&str> = source.text.lines().collect();
    let declared = lines.windows(2).filter(|pair| pair[0] == "#[cfg(test)]");
    let names = declared.filter_map(|pair| pair[1].strip_suffix(';')?.rsplit_once("mod ")).map(|(_, name)| name);
    names.map(|name| module(source).into_iter().chain([name.to_owned()]).collect()).collect()
}

fn without_tests(source: &Source) -> String {
    let code: Vec<&str> = source.code().map(|(_, line)| line).take_while(|line| *line != "mod tests {").collect();
    code.join("\n")
}

/// Returns the first ring that a walk from `at` meets.
fn ring(
    edges: &BTreeMap<&Module, BTreeSet<Module>>,
    at: &Module,
    way: &mut Vec<Module>,
    done: &mut BTreeSet<Module>,
) -> Option<Vec<Module>> {
    if let Some(start) = way.iter().position(|module| module == at) {
        return Some(way[start..].to_vec());
    }
    if !done.insert(at.clone()) {
        return None;
    }
    way.push(at.clone());
    let found = edges.get(at).into_iter().flatten().find_map(|to| ring(edges, to, way, done));
    way.pop();
    found
}

#[test]
fn no_files_import_each_other_in_a_ring() {
    let code = Crate::read();
    let edges = code.edges();
    let count: usize = edges.values().map(BTreeSet::len).sum();
    assert!(count > 300, "only {count} imports found");
    let mut done = BTreeSet::new();
    let found = edges.keys().find_map(|at| ring(&edges, at, &mut Vec::new(), &mut done));
    let names = |ring: Vec<Module>| ring.iter().map(|module| module.join("/")).collect::<Vec<_>>().join(" -> ");
    assert_eq!(found.map(names), None);
}

#[test]
fn a_ring_is_found_and_imports_are_read_whole() {
    assert_eq!(expanded("a::{b, c::{d, e}}"), ["a::b", "a::c::d", "a::c::e"]);
    let found = imports("use super::x::{Y, z as w};\npub use q::R;\nlet used = 1;");
    let found: Vec<(bool, &str, &str)> =
        found.iter().map(|(public, path, name)| (*public, path.as_str(), name.as_str())).collect();
    assert_eq!(found, [(false, "super::x::Y", "Y"), (false, "super::x::z", "w"), (true, "q::R", "R")]);
    let [a, b, c] = ["a", "b", "c"].map(|name| vec![name.to_owned()]);
    let edges = BTreeMap::from([
        (&a, BTreeSet::from([b.clone()])),
        (&b, BTreeSet::from([c.clone()])),
        (&c, BTreeSet::from([b.clone()])),
    ]);
    assert_eq!(ring(&edges, &a, &mut Vec::new(), &mut BTreeSet::new()), Some(vec![b, c]));
}
