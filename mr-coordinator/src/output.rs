//! Whether a job's results can go where the user wants them.
//!
//! Decides at submission and once more before the point of no return, so that what is in the way
//! is told while nothing is lost. Nothing is created here.

use std::{fs, io, path::Path};

use crate::{
    ids::WORK_ROOT,
    plan::Input,
    publish::SUCCESS_FILE,
    root::{PathError, Root},
    schedule::Trouble,
    spec::{BadSpec, OutputFormat, Spec},
};

/// Why results cannot go where the user wants them.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// The place makes no sense.
    #[error(transparent)]
    Spec(#[from] BadSpec),
    /// The path is refused or cannot be looked at.
    #[error("output: {0}")]
    Path(#[from] PathError),
    /// Something is there.
    #[error("output: `{path}` exists{why}")]
    Exists {
        /// The output as the user named it.
        path: String,
        /// What about it, beginning with a comma, or nothing.
        why: &'static str,
    },
}

impl OutputError {
    /// Whether the same look may show something else later.
    #[must_use]
    pub fn trouble(&self) -> Trouble {
        match self {
            Self::Path(PathError::Io { .. }) => Trouble::Passing(self.to_string()),
            Self::Spec(_) | Self::Path(PathError::Refused { .. }) | Self::Exists { .. } => {
                Trouble::Final(self.to_string())
            }
        }
    }
}

/// Checks the place of the output and what is there now; the place, relative to the root, with the
/// links on the way followed: two names of one place are one output.
///
/// # Errors
/// [`OutputError`].
pub fn check(root: &Root, spec: &Spec, can_exchange: bool) -> Result<String, OutputError> {
    let key = root.normal(&spec.output)?;
    if key.is_empty() {
        return Err(BadSpec::new("output", "it is the shared root itself").into());
    }
    if key.len() > OUTPUT_BYTES_MAX || key.rsplit('/').next().is_some_and(|n| n.len() > NAME_MAX) {
        return Err(BadSpec::new("output", "its name leaves no room for temporary names").into());
    }
    let place = root.place(&spec.output, &key)?;
    let key = place.strip_prefix(root.path()).ok().and_then(Path::to_str);
    let key = key.ok_or_else(|| PathError::refused(&spec.output, "it is not UTF-8"))?.to_owned();
    if key.split('/').next() == Some(WORK_ROOT) {
        return Err(BadSpec::new("output", "it is Flotilla's own directory").into());
    }
    if spec.overwrite && !can_exchange {
        let problem = "the shared file system cannot replace a directory in one step";
        return Err(BadSpec::new("overwrite", problem).into());
    }
    let exists = |why| OutputError::Exists { path: spec.output.clone(), why };
    match fs::symlink_metadata(&place) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(key),
        Err(error) => Err(PathError::io(&spec.output, error).into()),
        Ok(metadata) if !metadata.is_dir() => Err(exists(", and is no directory")),
        Ok(_) if spec.overwrite => Ok(key),
        Ok(_) => match spec.output_format {
            OutputFormat::Text | OutputFormat::Raw => Err(exists("")),
            OutputFormat::Lab if has_results(&place, spec)? => Err(exists(", with results in it")),
            OutputFormat::Lab => Ok(key),
        },
    }
}

/// The longest output, in bytes: temporary names beside it must stay below the system's limit.
const OUTPUT_BYTES_MAX: usize = 3_500;
/// The longest name of an output, in bytes, likewise: a staging name adds some 70.
const NAME_MAX: usize = 160;

fn has_results(place: &Path, spec: &Spec) -> Result<bool, OutputError> {
    let refuse = |error| PathError::io(&spec.output, error);
    for entry in fs::read_dir(place).map_err(refuse)? {
        let name = entry.map_err(refuse)?.file_name();
        // Whatever begins like a result would be taken for one: the labs read `mr-out*`.
        if name == SUCCESS_FILE || name.to_string_lossy().starts_with("mr-out") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Checks that the results will not be among the inputs, and that no input is among what is
/// replaced.
///
/// # Errors
/// [`OutputError::Spec`].
pub fn check_apart(
    root: &Root,
    spec: &Spec,
    output_key: &str,
    inputs: &[Input],
) -> Result<(), OutputError> {
    let place = root.place(&spec.output, output_key)?;
    for pattern in spec.inputs.iter().filter(|pattern| !pattern.starts_with('@')) {
        let named = root.join(&root.normal(pattern)?);
        if let Ok(real) = named.canonicalize()
            && real.is_dir()
            && place.starts_with(&real)
        {
            return Err(BadSpec::new("output", format!("it lies in the input `{pattern}`")).into());
        }
    }
    if spec.overwrite
        && let Some(input) = inputs.iter().find(|input| input.real.starts_with(&place))
    {
        let problem = format!("it would replace the input `{}`", input.path);
        return Err(BadSpec::new("output", problem).into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::{plan, scheduling::Scheduling, spec::InputFormat};

    fn spec(output: &str, output_format: OutputFormat, overwrite: bool) -> Spec {
        Spec {
            app: "wc".into(),
            inputs: vec!["in".into()],
            output: output.into(),
            reduces: 1,
            input_format: InputFormat::Text,
            output_format,
            split_bytes: 0,
            lease_ms: 10_000,
            task_timeout_ms: 10_000,
            max_attempts: 4,
            name: String::new(),
            slow_ms: 0,
            overwrite,
            flow: crate::flow::Flow::default(),
            scheduling: Scheduling::default(),
            streaming: None,
        }
    }

    fn root() -> (tempfile::TempDir, Root) {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::open(directory.path()).unwrap();
        for path in ["in", "old", "lab", "labs-done"] {
            fs::create_dir(root.join(path)).unwrap();
        }
        fs::write(root.join("in/a"), "a").unwrap();
        fs::write(root.join("file"), "x").unwrap();
        fs::write(root.join("lab/pg-a.txt"), "x").unwrap();
        fs::write(root.join("labs-done/mr-out-0"), "x").unwrap();
        symlink("/tmp", root.join("link")).unwrap();
        symlink("old", root.join("alias")).unwrap();
        (directory, root)
    }

    /// What a submission of this output comes to: the key, or the words of the refusal.
    fn verdict(root: &Root, spec: &Spec) -> Result<String, String> {
        let told = |error: OutputError| error.to_string();
        let key = check(root, spec, true).map_err(told)?;
        let inputs = plan::inputs(root, spec).map_err(|error| error.to_string())?;
        check_apart(root, spec, &key, &inputs).map_err(told)?;
        Ok(key)
    }

    #[test]
    fn place_of_the_output_is_checked() {
        let (_directory, root) = root();
        let text = |output: &str| verdict(&root, &spec(output, OutputFormat::Text, false));
        assert_eq!(text("new"), Ok("new".into()));
        assert_eq!(text("./a//b/c"), Ok("a/b/c".into()));
        assert_eq!(text("alias/x"), Ok("old/x".into()), "one place has one name");
        for (output, expected) in [
            (".", "shared root itself"),
            ("../x", "goes up"),
            ("/etc/x", "outside"),
            (".flotilla/x", "Flotilla's own"),
            ("link/x", "leads outside"),
            ("file", "exists, and is no directory"),
            ("file/x", "no directory"),
            ("old", "`old` exists"),
            ("in/out", "lies in the input `in`"),
            (&"n".repeat(200), "no room"),
        ] {
            let error = text(output).unwrap_err();
            assert!(error.contains(expected), "{output}: {error}");
        }
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 7, "nothing was created");
    }

    #[test]
    fn lab_results_may_go_into_a_directory_without_any() {
        let (_directory, root) = root();
        let lab = |output: &str| verdict(&root, &spec(output, OutputFormat::Lab, false));
        assert_eq!(lab("lab"), Ok("lab".into()));
        assert!(lab("labs-done").unwrap_err().contains("with results in it"));
        let beside =
            Spec { inputs: vec!["lab/*.txt".into()], ..spec("lab", OutputFormat::Lab, false) };
        assert_eq!(verdict(&root, &beside), Ok("lab".into()), "inputs may lie beside them");
    }

    #[test]
    fn overwriting_spares_inputs_and_needs_the_file_system() {
        let (_directory, root) = root();
        assert_eq!(verdict(&root, &spec("old", OutputFormat::Text, true)), Ok("old".into()));
        let inside =
            Spec { inputs: vec!["lab/*.txt".into()], ..spec("lab", OutputFormat::Text, true) };
        assert!(verdict(&root, &inside).unwrap_err().contains("would replace the input"));
        let refused = check(&root, &spec("old", OutputFormat::Text, true), false).unwrap_err();
        assert!(refused.to_string().contains("overwrite"));
    }
}
