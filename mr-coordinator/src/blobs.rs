//! Files that jobs send along: each lies once below the work root, under the SHA-256 of its bytes.
//!
//! Decides how one is taken in, durable before it is answered, and which are nobody's: those that no
//! job that has not ended names, when nobody has sent or named them for a day.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use proto::BLOBS_DIR;
use sha2::{Digest, Sha256};

use crate::{
    cleanup::is_older,
    ids::WORK_ROOT,
    root::{Root, create_dir, sync_dir},
    spec::BadSpec,
    streaming::{Streaming, blob_name},
};

/// How long a file stays that no job names: one who has sent it may take that long to submit.
pub const UNNAMED_AGE: Duration = Duration::from_secs(24 * 3_600);

/// How the name of a file begins that is being taken in.
const DRAFT: &str = "draft-";

/// Why a file is not taken in.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// It is too long.
    #[error("the file has more than {0} bytes (limit blob_bytes_max)")]
    TooLong(u64),
    /// The file system refuses.
    #[error("the file cannot be kept: {0}")]
    Io(#[from] io::Error),
}

/// A file that is being taken in. Dropped before its end, it leaves nothing.
#[derive(Debug)]
pub struct Upload {
    file: File,
    draft: PathBuf,
    digest: Sha256,
    bytes: u64,
    bytes_max: u64,
}

/// A file that was taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blob {
    /// The SHA-256 of its bytes.
    pub sha256: [u8; 32],
    /// Its length.
    pub bytes: u64,
}

impl Upload {
    /// Begins to take in a file of at most so many bytes.
    ///
    /// # Errors
    /// When the shared root cannot be written.
    pub fn begin(root: &Root, bytes_max: u64) -> Result<Self, BlobError> {
        create_dir(&root.join(WORK_ROOT))?;
        create_dir(&root.join(BLOBS_DIR))?;
        sync_dir(&root.join(WORK_ROOT))?;
        let draft = root.join(BLOBS_DIR).join(format!("{DRAFT}{}", uuid::Uuid::new_v4().simple()));
        let file = OpenOptions::new().write(true).create_new(true).open(&draft)?;
        Ok(Self { file, draft, digest: Sha256::new(), bytes: 0, bytes_max })
    }

    /// Takes in the next bytes.
    ///
    /// # Errors
    /// When they are too many, or cannot be written.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), BlobError> {
        self.bytes += bytes.len() as u64;
        if self.bytes > self.bytes_max {
            return Err(BlobError::TooLong(self.bytes_max));
        }
        self.digest.update(bytes);
        Ok(self.file.write_all(bytes)?)
    }

    /// Makes it durable under its digest. One that is there already stays, and is young again.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(self) -> Result<Blob, BlobError> {
        self.file.sync_all()?;
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(&self.digest.clone().finalize());
        let dir = self.draft.parent().unwrap_or(Path::new(""));
        fs::rename(&self.draft, dir.join(blob_name(&sha256)))?;
        sync_dir(dir)?;
        Ok(Blob { sha256, bytes: self.bytes })
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        // A draft that stays, as one that was renamed does not, is swept away when it is old.
        let _ = fs::remove_file(&self.draft);
    }
}

/// Checks that the files of a job are there, and makes them young again, so that none is removed
/// before the job is known.
///
/// # Errors
/// [`BadSpec`] naming the first that is not.
pub fn check(root: &Root, streaming: &Streaming) -> Result<(), BadSpec> {
    for side in &streaming.files {
        let path = root.join(BLOBS_DIR).join(side.blob());
        let found = File::options().write(true).open(&path).and_then(|file| {
            file.set_modified(SystemTime::now())?;
            file.metadata()
        });
        let problem = match found {
            Ok(metadata) if metadata.len() == side.bytes => continue,
            Ok(metadata) => format!("it has {} bytes, not {}", metadata.len(), side.bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                "it was not sent: call PutBlob first".to_owned()
            }
            Err(error) => error.to_string(),
        };
        return Err(BadSpec::new("files", format!("`{}`: {problem}", side.name)));
    }
    Ok(())
}

/// Removes files that no job names, when they are old; how many.
///
/// # Errors
/// When they cannot be listed. What cannot be removed is left for the next time.
pub fn sweep(root: &Root, named: &BTreeSet<String>) -> io::Result<usize> {
    let entries = match fs::read_dir(root.join(BLOBS_DIR)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let mut removed = 0;
    for entry in entries {
        let entry = entry?;
        let is_named = entry.file_name().to_str().is_some_and(|name| named.contains(name));
        if is_named || !is_older(&entry.path(), UNNAMED_AGE) {
            continue;
        }
        match fs::remove_file(entry.path()) {
            Ok(()) => removed += 1,
            Err(error) => {
                tracing::warn!(path = %entry.path().display(), %error, "an old side file stays");
            }
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::streaming::SideFile;

    #[test]
    fn files_lie_under_their_digest_until_they_are_old_and_unnamed() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::open(directory.path()).unwrap();
        let keep = |content: &[u8]| {
            let mut upload = Upload::begin(&root, 10).unwrap();
            for byte in content {
                upload.push(&[*byte])?;
            }
            upload.finish()
        };
        let blob = keep(b"abc").unwrap();
        let name = blob_name(&blob.sha256);
        assert_eq!(name, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(keep(b"abc").unwrap(), blob);
        let long = keep(&[0; 11]).unwrap_err().to_string();
        assert!(long.contains("blob_bytes_max"), "{long}");
        let names = || fs::read_dir(root.join(BLOBS_DIR)).unwrap().count();
        assert_eq!(names(), 1, "no draft is left");

        let Blob { sha256, bytes } = blob;
        let side = SideFile { name: "m.py".into(), sha256, bytes, executable: false };
        let job = |side| Streaming { files: vec![side], ..Streaming::default() };
        check(&root, &job(side.clone())).unwrap();
        let absent = check(&root, &job(SideFile { sha256: [0; 32], ..side.clone() })).unwrap_err();
        assert!(absent.to_string().contains("PutBlob"), "{absent}");
        assert!(check(&root, &job(SideFile { bytes: 4, ..side.clone() })).is_err());

        assert_eq!(sweep(&root, &BTreeSet::new()).unwrap(), 0, "it is young");
        let file = File::options().write(true).open(root.join(BLOBS_DIR).join(&name)).unwrap();
        file.set_modified(SystemTime::now() - 2 * UNNAMED_AGE).unwrap();
        assert_eq!(sweep(&root, &[name].into()).unwrap(), 0, "a job names it");
        assert_eq!(sweep(&root, &BTreeSet::new()).unwrap(), 1);
        assert_eq!(names(), 0);
    }
}
