//! Every manifest that people are shown is valid: the examples, and the YAML blocks of README and docs.

#![allow(clippy::unwrap_used)] // the whole file is test code, also outside `#[test]` functions

use std::fs;
use std::path::{Path, PathBuf};

use connector_operator::manifests;
use connector_operator::status::Reason;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn files(directory: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display())) {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, extension, found);
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
}

/// The fenced `yaml` blocks of a page, with their first line's number.
fn blocks(page: &str) -> Vec<(usize, String)> {
    let mut blocks = Vec::new();
    let mut open: Option<(usize, String)> = None;
    for (index, line) in page.lines().enumerate() {
        match &mut open {
            None if line == "```yaml" => open = Some((index + 2, String::new())),
            Some(_) if line == "```" => blocks.extend(open.take()),
            Some((_, text)) => {
                text.push_str(line);
                text.push('\n');
            }
            None => {}
        }
    }
    assert!(open.is_none(), "a block has no end");
    blocks
}

#[test]
fn examples_are_valid_with_their_secrets() {
    let mut manifest_files = Vec::new();
    files(&root().join("examples"), "yaml", &mut manifest_files);
    assert!(!manifest_files.is_empty());
    let mut directories: Vec<_> =
        manifest_files.iter().map(|file| file.parent().unwrap().to_owned()).collect();
    directories.sort();
    directories.dedup();
    for directory in directories {
        let manifests = manifests::read(std::slice::from_ref(&directory))
            .unwrap_or_else(|errors| panic!("{}: {errors:#?}", directory.display()));
        let missing = manifests::missing_secrets(&manifests);
        assert!(missing.is_empty(), "{}: {missing:#?}", directory.display());
    }
}

#[test]
fn manifests_in_pages_are_valid() {
    let mut pages = vec![root().join("README.md")];
    files(&root().join("docs"), "md", &mut pages);
    let mut seen = 0;
    for page in pages {
        for (line, text) in blocks(&fs::read_to_string(&page).unwrap()) {
            let errors = manifests::parse(Path::new("block.yaml"), &text).err().unwrap_or_default();
            assert!(errors.is_empty(), "{}:{line}: {errors:#?}", page.display());
            seen += 1;
        }
    }
    assert!(seen >= 10, "only {seen} blocks: is the fence of the pages still ```yaml?");
}

#[test]
fn blocks_are_found() {
    assert_eq!(blocks("a\n```yaml\nb: 1\n```\n```sh\nc\n```\n"), [(3, "b: 1\n".to_owned())]);
}

#[test]
fn every_reason_has_a_place_in_the_troubleshooting_page() {
    let mut sources = Vec::new();
    files(&root().join("connector-runtime/src"), "rs", &mut sources);
    let page = fs::read_to_string(root().join("docs/troubleshooting.md")).unwrap();
    let mut reasons: Vec<String> = Vec::new();
    for source in sources {
        // Tests and the names of `Debug` invent their own.
        let of_tests =
            |part: &std::ffi::OsStr| part.to_string_lossy().trim_end_matches(".rs").ends_with("tests");
        if source.iter().any(of_tests) {
            continue;
        }
        let text = fs::read_to_string(&source).unwrap();
        let product = text.split("#[cfg(test)]").next().unwrap_or_default();
        for line in product.lines().filter(|line| !line.contains("debug_struct")) {
            reasons.extend(camel_case_literals(line));
        }
    }
    assert!(reasons.len() > 10, "{reasons:?}");
    reasons.sort();
    reasons.dedup();
    let unknown: Vec<_> = page
        .lines()
        .filter_map(|line| line.strip_prefix("### "))
        .filter(|section| !reasons.iter().any(|reason| reason == section))
        .filter(|section| !Reason::ALL.iter().any(|reason| reason.as_str() == *section))
        .collect();
    assert!(unknown.is_empty(), "sections of docs/troubleshooting.md that nothing leads to: {unknown:?}");
    let missing: Vec<_> = reasons
        .iter()
        // Systems are named in this way too, as in `status.type`.
        .filter(|reason| !reason.ends_with("Source") && !reason.ends_with("Sink"))
        .filter(|reason| !page.contains(&format!("\n### {reason}\n")))
        .collect();
    assert!(missing.is_empty(), "no section in docs/troubleshooting.md for {missing:?}");
}

/// String literals of a line that are one word in CamelCase.
fn camel_case_literals(line: &str) -> Vec<String> {
    let code = line.split("//").next().unwrap_or_default();
    code.split('"')
        .skip(1)
        .step_by(2)
        .filter(|text| {
            text.len() > 3
                && text.starts_with(|first: char| first.is_ascii_uppercase())
                && text.contains(|letter: char| letter.is_ascii_lowercase())
                && text.chars().all(|letter| letter.is_ascii_alphabetic())
        })
        .map(str::to_owned)
        .collect()
}

#[test]
fn literals_are_found() {
    assert_eq!(camel_case_literals(r#"x("NotAFile", "a b", "PLAIN") // "Comment""#), ["NotAFile"]);
}
