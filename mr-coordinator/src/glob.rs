//! Patterns in file names: `*`, `?` and `[...]`, as shells have them.
//!
//! Decides whether one name matches one part of a pattern. A part's wildcards never match a slash,
//! and names that begin with a dot or an underscore only match a part that does too: what programs
//! keep beside data is no data.

/// Whether a part of a path has wildcards.
#[must_use]
pub fn is_pattern(part: &str) -> bool {
    part.contains(['*', '?', '['])
}

/// Whether a name is hidden from wildcards.
#[must_use]
pub fn is_hidden(name: &str) -> bool {
    name.starts_with(['.', '_'])
}

/// Whether a name matches a part of a pattern.
#[must_use]
pub fn matches(pattern: &str, name: &str) -> bool {
    if is_hidden(name) && !pattern.starts_with(['.', '_']) {
        return false;
    }
    let (pattern, name): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    // Where the last star was, and how far it reaches: the only place to come back to.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        let step = match pattern.get(p) {
            Some('*') => {
                star = Some((p, n));
                p += 1;
                continue;
            }
            Some('?') => Some(1),
            Some('[') => class(&pattern[p..], name[n]),
            Some(literal) if *literal == name[n] => Some(1),
            Some(_) | None => None,
        };
        match (step, star) {
            (Some(length), _) => (p, n) = (p + length, n + 1),
            (None, Some((at, reach))) => {
                star = Some((at, reach + 1));
                (p, n) = (at + 1, reach + 1);
            }
            (None, None) => return false,
        }
    }
    pattern[p..].iter().all(|rest| *rest == '*')
}

/// The length of the class that `pattern` begins with, when it contains `character`. A bracket
/// that is never closed stands for itself.
fn class(pattern: &[char], character: char) -> Option<usize> {
    let negated = matches!(pattern.get(1), Some('!' | '^'));
    let first = if negated { 2 } else { 1 };
    let close = pattern.iter().skip(first + 1).position(|c| *c == ']').map(|at| at + first + 1);
    let Some(close) = close else {
        return (character == '[').then_some(1);
    };
    let members = &pattern[first..close];
    let mut found = false;
    let mut at = 0;
    while at < members.len() {
        let low = members[at];
        if members.get(at + 1) == Some(&'-') && at + 2 < members.len() {
            found |= (low..=members[at + 2]).contains(&character);
            at += 3;
        } else {
            found |= low == character;
            at += 1;
        }
    }
    (found != negated).then_some(close + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_match_as_in_a_shell() {
        for (pattern, name, expected) in [
            ("*", "a", true),
            ("*", "", true),
            ("*.txt", "a.txt", true),
            ("*.txt", "a.txtx", false),
            ("pg-*.txt", "pg-tom_sawyer.txt", true),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("?", "é", true),
            ("??", "a", false),
            ("[a-c]x", "bx", true),
            ("[a-c]x", "dx", false),
            ("[!a-c]x", "dx", true),
            ("[]]", "]", true),
            ("[a", "[a", true),
            ("part-[0-9][0-9]", "part-07", true),
            ("*", ".hidden", false),
            ("*", "_SUCCESS", false),
            (".*", ".hidden", true),
            ("a[", "a[", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} and {name}");
        }
    }

    #[test]
    fn many_stars_take_no_exponential_time() {
        let pattern = "*a".repeat(50);
        assert!(!matches(&pattern, &"a".repeat(49)));
        assert!(!matches(&(pattern + "b"), &"a".repeat(4_000)));
    }
}
