//! Files that are there whole or not at all.
//!
//! Everything that this project writes goes through [`Files`]: a file is written under a temporary name, waits
//! until it is on the disk, is renamed, and the folder is synced. After an error, a full disk, a kill or a power
//! cut, a file holds what it held before or all of what is new. Permissions are those of any new file: the umask
//! applies.
//!
//! A set of files changes together. The file that is staged last is the one by which a reader knows the set (a
//! configuration, as a rule). Where it exists already, a commit goes:
//!
//! 1. the new files are renamed to `.<name>.pending`;
//! 2. the old last file is deleted: from here on the new set holds;
//! 3. each pending file gets its name, the last one last.
//!
//! Stopped before 2, the old set is there; after it, no reader finds the last file, but [`readable`] finds the
//! pending ones, and the next commit finishes what was begun. So no reader sees files of two sets.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::error::{Error, Result};

const PENDING: &str = ".pending";
/// Bytes that are written at once.
const BUFFER: usize = 1 << 20;

/// Files of one folder that are written together.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// let mut files = peft_core::files::Files::new(dir.path())?;
/// files.stage("weights.bin", |file| file.write_all(&[1, 2, 3]))?;
/// files.stage("config.json", |file| file.write_all(b"{}"))?;
/// files.commit()?; // before this, nothing has its name
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Files {
    dir: PathBuf,
    staged: Vec<(String, NamedTempFile)>,
}

impl Files {
    /// No files yet, for `dir`. The folder is created if it is missing.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn new(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        // The folder of a path that is a file's name alone.
        let dir = if dir.as_os_str().is_empty() {
            Path::new(".")
        } else {
            dir
        };
        create_dir(dir)?;
        Ok(Self {
            dir: dir.into(),
            staged: Vec::new(),
        })
    }

    /// Writes a file under a temporary name; it is on the disk when this returns. The file that readers know
    /// the set by is staged last.
    ///
    /// # Errors
    ///
    /// What `fill` returns, and [`Error::Io`] for the disk's refusals; nothing is left of the file then.
    pub fn stage<E>(
        &mut self,
        name: &str,
        fill: impl FnOnce(&mut dyn Write) -> Result<(), E>,
    ) -> Result<()>
    where
        E: Into<Problem>,
    {
        let path = self.dir.join(name);
        let file = temporary(&self.dir).map_err(io(&path))?;
        let mut writer = BufWriter::with_capacity(BUFFER, file.as_file());
        fill(&mut writer).map_err(|problem| match problem.into() {
            Problem::Io(source) => io(&path)(source),
            Problem::Other(error) => error,
        })?;
        writer.flush().map_err(io(&path))?;
        drop(writer);
        file.as_file().sync_all().map_err(io(&path))?;
        self.staged.push((name.to_string(), file));
        Ok(())
    }

    /// Gives the files their names, all or none.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn commit(self) -> Result<()> {
        let Self { dir, mut staged } = self;
        let Some((last, _)) = staged.last() else {
            return Ok(());
        };
        let last = last.clone();
        let folder = Folder::lock(&dir)?;
        if staged.len() > 1 {
            settle(&dir, &last, &folder)?;
            if dir.join(&last).exists() {
                let names: Vec<String> = staged.iter().map(|(name, _)| name.clone()).collect();
                for (name, file) in staged.drain(..) {
                    persist(file, &pending(&dir, &name))?;
                }
                folder.sync()?;
                remove(&dir.join(&last))?;
                folder.sync()?;
                return finish(&dir, &names, &folder);
            }
        }
        for (name, file) in staged {
            persist(file, &dir.join(name))?;
        }
        folder.sync()
    }
}

/// Why a file could not be filled.
#[derive(Debug)]
pub enum Problem {
    /// The system's refusal; the file's path is added.
    Io(io::Error),
    /// Anything else.
    Other(Error),
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

/// Writes one file, whole or not at all. Its folder is created if it is missing.
///
/// # Errors
///
/// [`Error::Io`]; a file that was there is as it was.
pub fn write(path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> Result<()> {
    write_with(path.as_ref(), |file| file.write_all(bytes.as_ref()))
}

/// [`write()`] of what `fill` writes.
///
/// # Errors
///
/// What `fill` returns, and [`Error::Io`]; a file that was there is as it was.
pub(crate) fn write_with<E: Into<Problem>>(
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> Result<(), E>,
) -> Result<()> {
    let name = path.file_name().ok_or_else(|| {
        io(path)(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the path names no file",
        ))
    })?;
    let mut files = Files::new(path.parent().unwrap_or(Path::new(".")))?;
    files.stage(&name.to_string_lossy(), fill)?;
    files.commit()
}

/// Where the file `name` of a set is to be read: at its pending name, if a commit of the set was interrupted
/// after its new files held. `last` is the file that was staged last.
pub fn readable(dir: &Path, last: &str, name: &str) -> PathBuf {
    let there = dir.join(name);
    let waiting = pending(dir, name);
    let interrupted = !dir.join(last).exists() && pending(dir, last).exists();
    if interrupted && waiting.exists() {
        waiting
    } else {
        there
    }
}

/// A new folder beside others, which gets its name when all of it is on the disk. Dropped before that, it is
/// deleted.
#[derive(Debug)]
pub struct NewFolder {
    partial: tempfile::TempDir,
    path: PathBuf,
}

impl NewFolder {
    /// A folder that will be called `path`; until then it is `.<name>-<random>.partial` in the same place.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn new(path: &Path) -> Result<Self> {
        let parent = path.parent().unwrap_or(Path::new("."));
        create_dir(parent)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let prefix = format!(".{name}-");
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).suffix(Self::SUFFIX);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            builder.permissions(fs::Permissions::from_mode(0o777));
        }
        let partial = builder.tempdir_in(parent).map_err(io(path))?;
        Ok(Self {
            partial,
            path: path.into(),
        })
    }

    /// How the names of unfinished folders end.
    pub const SUFFIX: &'static str = ".partial";

    /// Where its files are written for now.
    pub fn path(&self) -> &Path {
        self.partial.path()
    }

    /// Gives the folder its name. A folder of that name is replaced: it is deleted after the new one is there.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn commit(self) -> Result<()> {
        let Self { partial, path } = self;
        let parent = path.parent().unwrap_or(Path::new("."));
        let folder = Folder::lock(parent)?;
        Folder::open(partial.path())?.sync()?;
        let old = if path.exists() {
            let old = Self::new(&path)?;
            // A folder is not renamed over one that has files.
            let place = old.partial.path().join("replaced");
            fs::rename(&path, &place).map_err(io(&path))?;
            Some((old, place))
        } else {
            None
        };
        if let Err(error) = fs::rename(partial.path(), &path) {
            if let Some((_, place)) = &old {
                fs::rename(place, &path).map_err(io(&path))?;
            }
            return Err(io(&path)(error));
        }
        // It is elsewhere now, and stays there.
        let _ = partial.keep();
        folder.sync()?;
        drop(old);
        Ok(())
    }
}

/// Creates a folder with those above it; each is on the disk when this returns.
///
/// # Errors
///
/// [`Error::Io`].
pub fn create_dir(dir: &Path) -> Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let above = dir.parent().filter(|above| !above.as_os_str().is_empty());
    if let Some(above) = above {
        create_dir(above)?;
    }
    match fs::create_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists || !dir.is_dir() => {
            Err(io(dir)(error))
        }
        _ => Folder::open(above.unwrap_or(Path::new(".")))?.sync(),
    }
}

/// Deletes a folder. It loses its name at once, so that nobody finds half of it under that name.
///
/// # Errors
///
/// [`Error::Io`].
pub fn remove_dir(path: &Path) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let process = std::process::id();
    // A rename needs no room, which a new folder may not find on a full disk.
    let gone = path.with_file_name(format!(".{name}-{process}{}", NewFolder::SUFFIX));
    fs::rename(path, &gone).map_err(io(path))?;
    Folder::open(path.parent().unwrap_or(Path::new(".")))?.sync()?;
    fs::remove_dir_all(&gone).map_err(io(path))
}

/// Deletes a file that may be missing.
fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io(path)(error)),
        _ => Ok(()),
    }
}

fn pending(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!(".{name}{PENDING}"))
}

/// The name that a file of a folder has, or waits for.
pub(crate) fn named(file: &str) -> &str {
    let waiting = file
        .strip_prefix('.')
        .and_then(|name| name.strip_suffix(PENDING));
    waiting.unwrap_or(file)
}

/// Names of the files that wait for theirs.
fn waiting(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(io(dir))? {
        let name = entry.map_err(io(dir))?.file_name();
        let name = name.to_string_lossy();
        let inner = name
            .strip_prefix('.')
            .and_then(|name| name.strip_suffix(PENDING));
        names.extend(inner.map(String::from));
    }
    Ok(names)
}

/// Ends what an earlier commit of a set with this last file left: its new files get their names if they hold, and
/// are deleted if they do not.
fn settle(dir: &Path, last: &str, folder: &Folder) -> Result<()> {
    let mut names = waiting(dir)?;
    if names.is_empty() {
        return Ok(());
    }
    if dir.join(last).exists() || !names.iter().any(|name| name == last) {
        for name in names {
            remove(&pending(dir, &name))?;
        }
        return folder.sync();
    }
    names.retain(|name| name != last);
    names.push(last.to_string());
    finish(dir, &names, folder)
}

/// Gives pending files their names, in this order.
fn finish(dir: &Path, names: &[String], folder: &Folder) -> Result<()> {
    let (last, others) = names.split_last().expect("a set has files");
    for name in others {
        rename(&pending(dir, name), &dir.join(name))?;
    }
    // The last file says that the others are there.
    folder.sync()?;
    rename(&pending(dir, last), &dir.join(last))?;
    folder.sync()
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(io(to))
}

fn persist(file: NamedTempFile, path: &Path) -> Result<()> {
    file.persist(path)
        .map_err(|error| io(path)(error.error))
        .map(drop)
}

/// A file beside others, with the permissions of any new file.
fn temporary(dir: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".peft-");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(dir)
}

fn io(path: &Path) -> impl Fn(io::Error) -> Error + '_ {
    move |source| Error::Io {
        path: path.into(),
        source,
    }
}

/// An open folder: on Unix, names in it are on the disk once it is synced.
struct Folder {
    #[cfg(unix)]
    file: File,
    #[cfg(unix)]
    path: PathBuf,
}

impl Folder {
    #[cfg_attr(not(unix), expect(clippy::unnecessary_wraps))]
    fn open(path: &Path) -> Result<Self> {
        #[cfg(unix)]
        {
            let path = if path.as_os_str().is_empty() {
                Path::new(".")
            } else {
                path
            };
            Ok(Self {
                file: File::open(path).map_err(io(path))?,
                path: path.into(),
            })
        }
        #[cfg(not(unix))]
        {
            let _ = path;
            Ok(Self {})
        }
    }

    /// Until it is dropped, other commits in this folder wait. A file system without locks goes on without.
    fn lock(path: &Path) -> Result<Self> {
        let folder = Self::open(path)?;
        #[cfg(unix)]
        let _ = folder.file.lock();
        Ok(folder)
    }

    #[cfg_attr(not(unix), expect(clippy::unnecessary_wraps))]
    fn sync(&self) -> Result<()> {
        #[cfg(unix)]
        match self.file.sync_all() {
            // A file system that cannot sync folders says so.
            Err(error) if error.kind() != io::ErrorKind::InvalidInput => {
                return Err(io(&self.path)(error));
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
