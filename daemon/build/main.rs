//! Build script: gives the crate the commit that it is built from, as `FLOTILLA_COMMIT_SHORT`.
//!
//! The build must work where git is absent and where the sources are no repository, so every
//! doubt ends in the word "unknown" and never in an error.

mod commit;

use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-env-changed=FLOTILLA_COMMIT");
    let given = std::env::var("FLOTILLA_COMMIT").ok();
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(PathBuf::new, PathBuf::from);
    let root = manifest.parent().map_or_else(|| manifest.clone(), PathBuf::from);
    println!("cargo::rustc-env=FLOTILLA_COMMIT_SHORT={}", commit::of(given.as_deref(), &root));
    for path in commit::watched(&root) {
        println!("cargo::rerun-if-changed={}", path.display());
    }
}
