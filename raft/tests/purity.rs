//! The core reaches no clock, entropy, thread, lock or file: it has no standard library to reach them with. The compiler
//! enforces that as long as `lib.rs` says so and nothing that has them is depended on; that is what is checked here.

use std::path::{Path, PathBuf};

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
}

/// The lines of code of `text` that are not only for tests, with their numbers.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().enumerate().map(|(n, line)| (n + 1, line.trim()));
    // The tests of a module are at its end.
    lines.take_while(|(_, line)| *line != "mod tests {").filter(|(_, line)| !line.starts_with("//"))
}

#[test]
fn the_crate_has_no_standard_library() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let lib = std::fs::read_to_string(root.join("src/lib.rs")).unwrap();
    assert!(lib.contains("\n#![no_std]\n#![forbid(unsafe_code)]\n"), "lib.rs declares no_std and forbids unsafe code");
    let (mut files, mut externs) = (0, 0);
    for path in sources(&root.join("src")) {
        let text = std::fs::read_to_string(&path).unwrap();
        let name = path.to_str().unwrap();
        // Deliberate bugs are no part of the crate: see below.
        let is_test = name.ends_with("_tests.rs") || name.ends_with("src/seeded.rs");
        let mut previous = "";
        for (n, line) in code(&text).filter(|_| !is_test) {
            let place = || format!("{}:{n}: {line}", path.display());
            if line.contains("extern crate std") {
                externs += 1;
                assert_eq!(previous, "#[cfg(test)]", "only tests may have the standard library: {}", place());
            }
            // Atomics are in core, too, and would make a group depend on what other threads do.
            for reach in ["std::", "core::sync", "core::arch", "core::ptr", "asm!", "include!"] {
                assert!(!line.contains(reach), "{reach} is out of reach: {}", place());
            }
            previous = line;
        }
        files += 1;
    }
    assert!(files > 20 && externs == 1, "{files} files, {externs} times the standard library");
}

#[test]
fn deliberate_bugs_are_not_in_the_crate() {
    let lib = include_str!("../src/lib.rs");
    for (n, line) in lib.lines().enumerate().filter(|(_, line)| line.contains("mod seeded")) {
        let before = lib.lines().nth(n - 1).unwrap().trim();
        assert_eq!(before, "#[cfg(feature = \"seeded-bugs\")]", "line {}: {line}", n + 1);
    }
    let manifest = include_str!("../Cargo.toml");
    assert!(!manifest.contains("default = "), "no feature is on by default");
}

#[test]
fn the_crate_depends_on_bytes_only() {
    let manifest = include_str!("../Cargo.toml");
    let (_, after) = manifest.split_once("[dependencies]\n").unwrap();
    let dependencies = after.lines().take_while(|line| !line.starts_with('[') && !line.is_empty());
    let dependencies: Vec<&str> = dependencies.filter(|line| !line.starts_with('#')).collect();
    assert_eq!(dependencies.len(), 1, "{dependencies:?}");
    assert!(dependencies[0].starts_with("bytes = ") && dependencies[0].contains("default-features = false"));
    assert!(!manifest.contains("build.rs") && !Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/build.rs")).exists());
}
