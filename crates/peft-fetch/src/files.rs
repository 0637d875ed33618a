//! Files that are there whole or not at all, and folders whose names are on the disk.

use crate::error::FetchError;
use std::{
    fs::{self, File},
    io::Write,
    path::Path,
};

/// Writes a file beside `path`, waits until it is on the disk, and gives it its name. Its permissions are those of any
/// new file.
pub(crate) fn write(path: &Path, content: &[u8]) -> Result<(), FetchError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    builder.prefix(".peft-");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    let mut file = builder
        .tempfile_in(folder)
        .map_err(FetchError::io("write", path))?;
    file.write_all(content)
        .and_then(|()| file.as_file().sync_all())
        .map_err(FetchError::io("write", path))?;
    file.persist(path)
        .map_err(|error| FetchError::io("write", path)(error.error))?;
    sync_folder(folder)
}

/// Waits until a file's content is on the disk.
pub(crate) fn sync(file: &File, path: &Path) -> Result<(), FetchError> {
    file.sync_all().map_err(FetchError::io("write", path))
}

/// Gives a file that is on the disk another name.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<(), FetchError> {
    fs::rename(from, to).map_err(FetchError::io("move a file to", to))
}

/// Waits until the names in a folder are on the disk. Only Unix knows how.
pub(crate) fn sync_folder(folder: &Path) -> Result<(), FetchError> {
    #[cfg(unix)]
    match File::open(folder).and_then(|folder| folder.sync_all()) {
        // A file system that cannot sync folders says so.
        Err(error) if error.kind() != std::io::ErrorKind::InvalidInput => {
            return Err(FetchError::io("write", folder)(error));
        }
        _ => {}
    }
    #[cfg(not(unix))]
    let _ = folder;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_and_nothing_else_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock.json");
        for content in ["one", "other"] {
            write(&path, content.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let error = write(&dir.path().join("none/lock.json"), b"").unwrap_err();
        assert!(error.to_string().contains("lock.json"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn permissions_are_those_of_any_new_file() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let (plain, ours) = (dir.path().join("plain"), dir.path().join("ours"));
        fs::write(&plain, "").unwrap();
        write(&ours, b"").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&ours), mode(&plain));
    }
}
