//! The signing secret of an embedded muster that was given none: made once, kept beside the data
//! file where only its owner can read it.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anyhow::Context;
use secrecy::SecretString;

use crate::config::file;
use crate::domain::id::random_hex;

/// Reads the secret at `path`, or makes it; only one process may do so at a time. Returns whether it was made.
pub fn load_or_create(path: &Path) -> anyhow::Result<(SecretString, bool)> {
    let is_new = std::fs::symlink_metadata(path).is_err_and(|e| e.kind() == ErrorKind::NotFound);
    if is_new {
        create(path).with_context(|| {
            format!(
                "{}: cannot be made; set JWT_SECRET, or MUSTER_STORE to a writable place",
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

/// Reads the secret that was made before.
pub fn load(path: &Path) -> anyhow::Result<SecretString> {
    let secret =
        file::read_text(path).with_context(|| format!("{}: cannot be read", path.display()))?;
    if secret.trim().len() < 32 {
        anyhow::bail!(
            "{}: holds no secret of 32 bytes; remove it to have a new one made",
            path.display()
        );
    }
    Ok(SecretString::from(secret.trim()))
}

/// Writes a new secret next to its place and renames it, so that a crash leaves a whole one or none.
fn create(path: &Path) -> io::Result<()> {
    let mut aside = path.to_owned().into_os_string();
    aside.push(".new");
    let aside = Path::new(&aside);
    // One that a crash left may have other permissions, or be a link.
    match std::fs::remove_file(aside) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(aside)?;
    file.write_all(format!("{}{}", random_hex(), random_hex()).as_bytes())?;
    file.sync_all()?;
    std::fs::rename(aside, path)?;
    // The rename too has to survive a power cut.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret;

    #[test]
    fn made_once_then_kept_and_private() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("muster.redb.secret");
        let (first, made) = load_or_create(&path).unwrap();
        assert!(made);
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        let (second, made) = load_or_create(&path).unwrap();
        assert!(!made);
        assert_eq!(first.expose_secret(), second.expose_secret());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_crash_while_it_is_made_leaves_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("muster.redb.secret");
        // As far as a killed process may have come.
        let aside = directory.path().join("muster.redb.secret.new");
        std::fs::write(&aside, "").unwrap();
        std::fs::set_permissions(&aside, Permissions::from_mode(0o644)).unwrap();
        let (secret, made) = load_or_create(&path).unwrap();
        assert!(made && secret.expose_secret().len() >= 32 && !aside.exists());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        // What an older version may have left is named.
        std::fs::write(&path, "").unwrap();
        let told = load_or_create(&path).err().unwrap().to_string();
        assert!(told.contains("remove it to have a new one made"), "{told}");
    }
}
