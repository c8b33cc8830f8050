//! A planted bug as a file: a few words on what it does, perhaps a line `Scenario: FILE::TEST`, then
//! a change of one source file in the unified format, as `diff -u` writes it.
//!
//! The numbers of lines in it are not looked at. A hunk stands where its lines do, and they must
//! stand in one place only: so a patch outlives changes elsewhere in the file, and one that no
//! longer fits is refused, never applied somewhere else.

/// A patch of one file.
#[derive(Debug)]
pub struct Patch {
    /// What the bug is.
    pub why: String,
    /// The scenario that shows it, where seeds hardly ever do: a test file and a test in it.
    pub scenario: Option<(String, String)>,
    /// The file, from the root of the workspace.
    pub file: String,
    hunks: Vec<Hunk>,
}

/// Lines that take the place of others.
#[derive(Debug, Default)]
struct Hunk {
    before: Vec<String>,
    after: Vec<String>,
}

impl Patch {
    /// Reads a patch.
    ///
    /// # Errors
    /// What is not as it should be.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (why, change) = text.split_once("\n--- a/").ok_or("it has no line `--- a/FILE`")?;
        let mut lines = change.lines();
        let file = lines.next().unwrap_or_default().to_owned();
        if lines.next() != Some(format!("+++ b/{file}").as_str()) {
            return Err(format!("`--- a/{file}` is not followed by `+++ b/{file}`"));
        }
        let mut hunks: Vec<Hunk> = Vec::new();
        for line in lines {
            if line.starts_with("@@ ") {
                hunks.push(Hunk::default());
                continue;
            }
            let hunk = hunks.last_mut().ok_or_else(|| format!("{line:?} stands before a hunk"))?;
            hunk.push(line)?;
        }
        if hunks.is_empty() || why.trim().is_empty() {
            return Err("it changes nothing, or does not say why".to_owned());
        }
        let (why, scenario) = match why.trim().split_once("\nScenario: ") {
            Some((why, named)) => {
                let (file, test) = named.split_once("::").ok_or("a scenario is FILE::TEST")?;
                (why.trim(), Some((file.to_owned(), test.to_owned())))
            }
            None => (why.trim(), None),
        };
        Ok(Self { why: why.to_owned(), scenario, file, hunks })
    }

    /// The file with the bug in it.
    ///
    /// # Errors
    /// A hunk does not fit.
    pub fn apply(&self, source: &str) -> Result<String, String> {
        let mut lines: Vec<&str> = source.lines().collect();
        for (Hunk { before, after }, number) in self.hunks.iter().zip(1..) {
            let fits = |place: &usize| lines[*place..].iter().zip(before).all(|(a, b)| a == b);
            let last = (lines.len() + 1).saturating_sub(before.len());
            let places: Vec<usize> = (0..last).filter(fits).collect();
            let &[place] = places.as_slice() else {
                let (count, file) = (places.len(), &self.file);
                return Err(format!("hunk {number} fits {count} places of {file}, not one"));
            };
            lines.splice(place..place + before.len(), after.iter().map(String::as_str));
        }
        Ok(lines.iter().flat_map(|line| [*line, "\n"]).collect())
    }
}

impl Hunk {
    fn push(&mut self, line: &str) -> Result<(), String> {
        let (before, after) = match line.as_bytes().first() {
            // An editor may have taken away the blank of an empty line.
            Some(b' ') | None => (true, true),
            Some(b'-') => (true, false),
            Some(b'+') => (false, true),
            Some(_) => return Err(format!("{line:?} is no line of a hunk")),
        };
        let line = line.get(1..).unwrap_or_default();
        for (wanted, lines) in [(before, &mut self.before), (after, &mut self.after)] {
            if wanted {
                lines.push(line.to_owned());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUG: &str = "It adds where it should subtract.\n\n--- a/x.rs\n+++ b/x.rs\n@@ -7,3 +7,3 @@\n fn f() {\n-    a - b\n+    a + b\n }\n";

    fn refused(text: &str, source: &str) -> String {
        Patch::parse(text).and_then(|patch| patch.apply(source)).unwrap_err()
    }

    #[test]
    fn hunk_is_applied_where_its_lines_stand() {
        let patch = Patch::parse(BUG).unwrap();
        assert_eq!(patch.why, "It adds where it should subtract.");
        assert_eq!(patch.file, "x.rs");
        let source = "first();\nfn f() {\n    a - b\n}\nlast();\n";
        assert_eq!(patch.apply(source).unwrap(), source.replace('-', "+"));
        assert_eq!(patch.apply("fn f() {\n    a - b\n}\n").unwrap(), "fn f() {\n    a + b\n}\n");
    }

    #[test]
    fn scenario_is_no_part_of_the_reason() {
        let named = BUG.replace("subtract.\n", "subtract.\n\nScenario: raft_read::late\n");
        let patch = Patch::parse(&named).unwrap();
        assert_eq!(patch.why, "It adds where it should subtract.");
        assert_eq!(patch.scenario, Some(("raft_read".to_owned(), "late".to_owned())));
    }

    #[test]
    fn hunk_that_fits_nowhere_or_twice_is_refused() {
        let once = "fn f() {\n    a - b\n}\n";
        assert_eq!(
            refused(BUG, "fn f() {\n    b - a\n}\n"),
            "hunk 1 fits 0 places of x.rs, not one"
        );
        assert_eq!(refused(BUG, &once.repeat(2)), "hunk 1 fits 2 places of x.rs, not one");
        // Lines are compared whole.
        assert_eq!(refused(BUG, &format!("async {once}")), "hunk 1 fits 0 places of x.rs, not one");
    }

    #[test]
    fn what_is_no_patch_is_refused() {
        for (broken, why) in [
            (BUG.replace("--- a", "--- c"), "it has no line `--- a/FILE`"),
            (BUG.replace("+++ b/x", "+++ b/y"), "`--- a/x.rs` is not followed by `+++ b/x.rs`"),
            (BUG.replace("@@ -7,3 +7,3 @@\n", ""), "\" fn f() {\" stands before a hunk"),
            (BUG.replace("\n }", "\n}"), "\"}\" is no line of a hunk"),
            (
                BUG.replace("It adds where it should subtract.", ""),
                "it changes nothing, or does not say why",
            ),
        ] {
            assert_eq!(refused(&broken, ""), why, "{broken}");
        }
    }
}
