//! The generated signing secret of an embedded muster without `token.secret`. It is stored next to the
//! data file, readable only by its owner.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anyhow::Context;
use secrecy::SecretString;

use crate::config::file;
use crate::domain::id::random_hex;

/// Loads the secret at `path`, or generates it. Returns the secret and whether it was generated. Only one
/// process may call this at a time.
///
/// # Errors
/// If the file cannot be created or read, or is too short.
pub fn load_or_create(path: &Path) -> anyhow::Result<(SecretString, bool)> {
    let is_new = std::fs::symlink_metadata(path).is_err_and(|e| e.kind() == ErrorKind::NotFound);
    if is_new {
        create(path).with_context(|| {
            format!(
                "{}: cannot be created; set JWT_SECRET, or set MUSTER_STORE to a writable directory",
                path.display()
            )
        })?;
    }
    let secret = load(path)?;
    let mode = std::fs::metadata(path)?.permissions().mode();
    if mode & 0o077 != 0 {
        std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
    }
    Ok((secret, is_new))
}

/// Loads the secret that was generated before.
///
/// # Errors
/// If the file cannot be read or has fewer than 32 bytes.
pub fn load(path: &Path) -> anyhow::Result<SecretString> {
    let secret =
        file::read_text(path).with_context(|| format!("{}: cannot be read", path.display()))?;
    if secret.trim().len() < 32 {
        anyhow::bail!(
            "{}: expected a secret of at least 32 bytes, got {}; remove the file to generate a new secret",
            path.display(),
            secret.trim().len()
        );
    }
    Ok(SecretString::from(secret.trim()))
}

/// Writes a new secret to a temporary file and renames it, so that a crash leaves a complete secret or
/// none.
fn create(path: &Path) -> io::Result<()> {
    let mut temporary = path.to_owned().into_os_string();
    temporary.push(".new");
    let temporary = Path::new(&temporary);
    // A file left by a crash may have other permissions, or be a link.
    match std::fs::remove_file(temporary) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(temporary)?;
    file.write_all(format!("{}{}", random_hex(), random_hex()).as_bytes())?;
    file.sync_all()?;
    std::fs::rename(temporary, path)?;
    // The rename must also survive a power failure.
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret;

    #[test]
    fn secret_is_generated_once_and_private() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("muster.redb.secret");
        let (first, is_new) = load_or_create(&path).unwrap();
        assert!(is_new);
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        let (second, is_new) = load_or_create(&path).unwrap();
        assert!(!is_new);
        assert_eq!(first.expose_secret(), second.expose_secret());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn secret_is_generated_after_a_crash_during_creation() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("muster.redb.secret");
        // The state after a crash.
        let temporary = directory.path().join("muster.redb.secret.new");
        std::fs::write(&temporary, "").unwrap();
        std::fs::set_permissions(&temporary, Permissions::from_mode(0o644)).unwrap();
        let (secret, is_new) = load_or_create(&path).unwrap();
        assert!(is_new && secret.expose_secret().len() >= 32 && !temporary.exists());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        // A file that an older version may have left.
        std::fs::write(&path, "").unwrap();
        let error = load_or_create(&path).err().unwrap().to_string();
        assert!(error.contains("remove the file to generate a new secret"), "{error}");
    }
}
