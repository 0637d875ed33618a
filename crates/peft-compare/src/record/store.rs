//! The folder of records. A run that is killed leaves either its whole record or none.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use peft_core::files;
use serde::Deserialize;

use super::{RunRecord, SCHEMA};

/// Why records could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// A file or folder cannot be read.
    #[error("cannot read {}: {source}; check that the path exists and that you may read it", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The refusal.
        source: io::Error,
    },
    /// A record cannot be written.
    #[error("{0}; check that you may write there and that the disk is not full")]
    Write(#[source] peft_core::Error),
    /// A JSON file that is not a run record.
    #[error(
        "{} is not a run record ({source}); move it out of the results folder, or point to the folder that the \
         comparison wrote", path.display()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A record of another version of the format.
    #[error(
        "{} has record schema {found}, this version reads {SCHEMA}; report it with the version that wrote it, or \
         delete it and run again", path.display()
    )]
    Schema {
        /// The file.
        path: PathBuf,
        /// The version in the file.
        found: u32,
    },
    /// An id that is no safe file name.
    #[error(
        "run id {id:?} is not hexadecimal; build it with the hash of the definition and the seed"
    )]
    Id {
        /// The id.
        id: String,
    },
    /// The record has no JSON form.
    #[error(
        "run {id} has no JSON form: {source}; remove what is not plain data from its definition"
    )]
    Serialize {
        /// The id.
        id: String,
        /// What has no form.
        source: serde_json::Error,
    },
}

impl RunRecord {
    /// The file of the run `id` in `dir`, whether it exists or not.
    pub fn path(dir: &Path, id: &str) -> PathBuf {
        dir.join(format!("{id}.json"))
    }

    /// Reads one record.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, is not a record, or is one of another [`SCHEMA`].
    pub fn read(path: &Path) -> Result<Self, RecordError> {
        /// Read first, so that another version is reported as such and not as a missing field.
        #[derive(Deserialize)]
        struct Header {
            schema: u32,
        }
        let foreign = |source| RecordError::Foreign {
            path: path.into(),
            source,
        };
        let bytes = fs::read(path).map_err(|source| RecordError::Read {
            path: path.into(),
            source,
        })?;
        let Header { schema: found } = serde_json::from_slice(&bytes).map_err(foreign)?;
        if found != SCHEMA {
            return Err(RecordError::Schema {
                path: path.into(),
                found,
            });
        }
        serde_json::from_slice(&bytes).map_err(foreign)
    }

    /// Reads all `*.json` files under `dir`, its subfolders included, ordered by suite, task, model, method and seed.
    ///
    /// Links to folders are not followed.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read), for the first file that fails, in order of paths.
    pub fn load_dir(dir: &Path) -> Result<Vec<Self>, RecordError> {
        let mut paths = Vec::new();
        collect_json(dir, &mut paths)
            .map_err(|(path, source)| RecordError::Read { path, source })?;
        paths.sort();
        let mut records = paths
            .iter()
            .map(|path| Self::read(path))
            .collect::<Result<Vec<_>, _>>()?;
        records.sort_by(|a, b| a.key().cmp(&b.key()));
        Ok(records)
    }

    /// Writes the record to `dir`, which is created when missing, and returns its path.
    ///
    /// The file appears under its name only when it is complete and on disk. A record of the same id is replaced.
    ///
    /// # Errors
    ///
    /// When the id is not hexadecimal or the folder is not writable.
    pub fn write(&self, dir: &Path) -> Result<PathBuf, RecordError> {
        if self.id.is_empty() || !self.id.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(RecordError::Id {
                id: self.id.clone(),
            });
        }
        let mut json =
            serde_json::to_vec_pretty(self).map_err(|source| RecordError::Serialize {
                id: self.id.clone(),
                source,
            })?;
        json.push(b'\n');
        let path = Self::path(dir, &self.id);
        files::write(&path, &json).map_err(RecordError::Write)?;
        Ok(path)
    }

    fn key(&self) -> (&str, &str, &str, &str, u64, &str) {
        (
            &self.suite,
            &self.task,
            &self.model.name,
            &self.method.name,
            self.seed,
            &self.id,
        )
    }
}

fn collect_json(dir: &Path, paths: &mut Vec<PathBuf>) -> Result<(), (PathBuf, io::Error)> {
    let failed = |source| (dir.to_path_buf(), source);
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let path = entry.path();
        if entry.file_type().map_err(failed)?.is_dir() {
            collect_json(&path, paths)?;
        } else if path
            .extension()
            .is_some_and(|extension| extension == "json")
        {
            paths.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn a_written_record_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut record = sample::record("lora", 1);
        record.curve[0].train_loss = f64::NAN;
        let path = record.write(&dir.path().join("deep/er")).unwrap();
        assert_eq!(
            path,
            RunRecord::path(&dir.path().join("deep/er"), &record.id)
        );
        let read = RunRecord::load_dir(dir.path()).unwrap();
        assert!(read[0].curve[0].train_loss.is_nan());
        assert_eq!(
            serde_json::to_value(&read[0]).unwrap(),
            serde_json::to_value(&record).unwrap()
        );
        assert_eq!(
            fs::read_dir(path.parent().unwrap()).unwrap().count(),
            1,
            "no temporary file stays"
        );
    }

    #[test]
    fn the_order_is_of_content_not_of_names() {
        let dir = tempfile::tempdir().unwrap();
        for (index, record) in sample::records(2).iter().rev().enumerate() {
            record.write(&dir.path().join(index.to_string())).unwrap();
        }
        let read = RunRecord::load_dir(dir.path()).unwrap();
        assert_eq!(read.len(), 16);
        assert!(read.is_sorted_by(|a, b| a.key() <= b.key()));
    }

    #[test]
    fn foreign_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plan.json");
        fs::write(&path, "{}").unwrap();
        let error = RunRecord::load_dir(dir.path()).unwrap_err();
        assert!(matches!(error, RecordError::Foreign { .. }));
        assert!(error.to_string().contains("plan.json"));

        fs::write(&path, r#"{"schema": 99}"#).unwrap();
        let error = RunRecord::load_dir(dir.path()).unwrap_err();
        assert!(
            matches!(error, RecordError::Schema { found: 99, .. }),
            "{error}"
        );

        assert!(matches!(
            RunRecord::load_dir(&dir.path().join("missing")),
            Err(RecordError::Read { .. })
        ));
    }

    #[test]
    fn an_id_cannot_leave_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let mut record = sample::record("lora", 1);
        record.id = "../escape".into();
        assert!(matches!(
            record.write(dir.path()),
            Err(RecordError::Id { .. })
        ));
    }
}
