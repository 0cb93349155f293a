//! Detects password hashes that were sent as clear passwords.
//!
//! A hash that is registered as a password locks out its user, and lets in anyone who has the leaked
//! hash. A string in a format that names its algorithm is always treated as a hash. A bare digest
//! (hexadecimal or base64 of a digest's length) may also come from a password generator. It is
//! treated as a hash only if every password of the file or upload is a digest, which
//! `rows::HashColumnDetector` decides.

/// How strongly a clear password resembles a hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashLike {
    /// An ordinary password.
    No,
    /// A bare digest: hexadecimal or base64 of a digest's length.
    Digest,
    /// A hash format that names its algorithm.
    Format,
}

/// Identifiers of the modular crypt formats (`$id$…`), separated by spaces.
const CRYPT_IDS: &str = "1 2 2a 2b 2x 2y 3 5 6 7 y gy sm3 md5 sha1 P H S wp SHA";
/// Algorithm names before the first `$` in the formats of Django and passlib.
const DJANGO_IDS: &str = "pbkdf2_sha256 pbkdf2_sha1 pbkdf2_sha512 argon2 bcrypt bcrypt_sha256 scrypt md5 \
    sha1 sha256 sha512 unsalted_md5 unsalted_sha1 crypt hmac_md5 hmac_sha1 hmac_sha256 phpass";
/// Scheme names in braces, as LDAP, Dovecot and Spring write them, in lower case. Some of them mark a
/// clear password, which would be registered together with its mark.
const SCHEMES: &str = "argon2 argon2@springsecurity_v5_8 argon2i argon2id bcrypt blf-crypt clear cleartext \
    cram-md5 crypt digest-md5 hmac-md5 ldap md4 md5 md5-crypt noop pbkdf2 pbkdf2-sha1 pbkdf2-sha256 \
    pbkdf2-sha512 pbkdf2@springsecurity_v5_8 plain plain-md5 plain-trunc scram-sha-1 scram-sha-256 scrypt \
    scrypt@springsecurity_v5_8 sha sha1 sha-1 sha224 sha256 sha-256 sha256-crypt sha384 sha512 sha-512 \
    sha512-crypt smd5 ssha ssha1 ssha256 ssha512 standardsha256 x-issha";

/// Classifies a clear password. White space around it is ignored.
pub fn detect_hash(password: &str) -> HashLike {
    let text = password.trim();
    if is_crypt(text) || is_django(text) || is_scheme(text) || is_other_format(text) {
        HashLike::Format
    } else if is_digest(text) {
        HashLike::Digest
    } else {
        HashLike::No
    }
}

/// Whether a string is a modular crypt format or a PHC string: `$id$…` with a rest that has the
/// length and the characters of a hash.
fn is_crypt(text: &str) -> bool {
    let Some((id, rest)) = text.strip_prefix('$').and_then(|text| text.split_once('$')) else {
        return false;
    };
    let id = id.split(',').next().unwrap_or_default();
    let has_known_id = is_one_of(CRYPT_IDS, id);
    let is_phc = (3..=32).contains(&id.len())
        && id.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-');
    // bcrypt's two-digit cost identifies it even if the rest was cut off.
    let is_bcrypt = id.starts_with('2') && has_known_id && rest.get(2..3) == Some("$");
    (has_known_id || is_phc) && has_hash_characters(rest) && (rest.len() >= 20 || is_bcrypt)
}

/// Whether a string is a hash of Django (`pbkdf2_sha256$260000$salt$hash`) or Werkzeug
/// (`pbkdf2:sha256:260000$salt$hash`), or Django's mark for an unusable password (`!` and 40
/// characters).
fn is_django(text: &str) -> bool {
    let Some((id, rest)) = text.split_once('$') else {
        let unusable = text.strip_prefix('!').unwrap_or_default();
        return unusable.len() == 40 && unusable.bytes().all(|c| c.is_ascii_alphanumeric());
    };
    let is_werkzeug = ["pbkdf2:", "scrypt:"].iter().any(|start| id.starts_with(start));
    (is_one_of(DJANGO_IDS, id) || is_werkzeug)
        && has_hash_characters(rest)
        && rest.contains('$')
        && rest.len() >= 10
}

/// Whether a string begins with a scheme: `{SSHA}…`, `{bcrypt}…`, `{noop}…`.
fn is_scheme(text: &str) -> bool {
    let Some((scheme, rest)) = text.strip_prefix('{').and_then(|text| text.split_once('}')) else {
        return false;
    };
    let name = scheme.split(['.', ',']).next().unwrap_or_default().to_ascii_lowercase();
    !rest.is_empty() && is_one_of(SCHEMES, &name)
}

/// Whether a string is a hash of PostgreSQL (SCRAM or MD5) or MySQL, a `digest:salt`, or a
/// `sha256:iterations:…`.
fn is_other_format(text: &str) -> bool {
    let is_hex_of = |text: &str, length: usize| text.len() == length && is_hex(text);
    if let Some(rest) = text.strip_prefix("SCRAM-SHA-256$") {
        return has_hash_characters(rest) && rest.len() >= 20;
    }
    if text.strip_prefix("md5").is_some_and(|rest| is_hex_of(rest, 32))
        || text.strip_prefix('*').is_some_and(|rest| is_hex_of(rest, 40))
    {
        return true;
    }
    let mut parts = text.split(':');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(digest), Some(salt), None) => {
            HEX_LENGTHS.contains(&digest.len()) && is_hex(digest) && !salt.is_empty()
        }
        (Some("sha1" | "sha256" | "sha512"), Some(iterations), Some(_)) => {
            !iterations.is_empty() && iterations.bytes().all(|c| c.is_ascii_digit())
        }
        _ => false,
    }
}

/// Lengths of MD5, SHA-1, SHA-224, SHA-256, SHA-384 and SHA-512 digests in hexadecimal.
const HEX_LENGTHS: [usize; 6] = [32, 40, 56, 64, 96, 128];
/// Lengths of digests in base64, and how many characters of them are padding. Without padding, only
/// lengths that are rare among passwords are listed.
const BASE64_LENGTHS: [(usize, usize); 8] =
    [(24, 2), (28, 1), (40, 2), (44, 1), (88, 2), (43, 0), (64, 0), (86, 0)];

fn is_digest(text: &str) -> bool {
    let digits = text.trim_end_matches('=');
    let is_base64 = || digits.bytes().all(|c| c.is_ascii_alphanumeric() || b"+/-_".contains(&c));
    (HEX_LENGTHS.contains(&text.len()) && is_hex(text))
        || (BASE64_LENGTHS.contains(&(text.len(), text.len() - digits.len())) && is_base64())
}

fn is_hex(text: &str) -> bool {
    let all = |is_digit: fn(u8) -> bool| text.bytes().all(|c| c.is_ascii_digit() || is_digit(c));
    all(|c| (b'a'..=b'f').contains(&c)) || all(|c| (b'A'..=b'F').contains(&c))
}

fn is_one_of(words: &str, word: &str) -> bool {
    words.split_ascii_whitespace().any(|known| known == word)
}

fn has_hash_characters(text: &str) -> bool {
    text.bytes().all(|c| c.is_ascii_alphanumeric() || b"./+=,$*:@_-".contains(&c))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hash_formats_are_detected() {
        for hash in [
            "$2b$10$",
            "$2a$10$k87L/MF28Q673VKh8/cPi.SUl7MU/rWuSiIDDFayrKk/1tBsSQu4u",
            "$2y$10$k87L/MF28Q673VKh8/cPi.SUl7MU/rWuSiIDDFayrKk/1tBsSQu4u",
            " $2b$10$k87L/MF28Q673VKh8/cPi.SUl7MU/rWuSiIDDFayrKk/1tBsSQu4u ",
            "$2b$10$k87L/MF28Q673",
            "$wp$2y$10$k87L/MF28Q673VKh8/cPi.SUl7MU/rWuSiIDDFayrKk/1tBsSQu4u",
            "$1$saltsalt$qjXMvbEw8oaL.CzflDtaK/",
            "$5$rounds=5000$saltstring$5B8vYYiY.CVt1RlTTf8KbXBH3hsxY/GNooZaBBGWEc8",
            "$6$saltstring$svn8UoSVapNtMuq1ukKS4tPQd8iKwSMHWjlO/O817G3uBnIFNjnQJu",
            "$y$j9T$F5Jx5fExrKuPp53xLKQ..1$X3DX6M94c7o.9agCG9G317fhZg9SqC.5i5rd.RhAtQ7",
            "$P$B55D6LjfHDkINU5wF.v2BuuzO0/XPk/",
            "$H$9V1cX/WqUhsSWM0ipyB7HwFQqTQKxP1",
            "$S$C33783772bRXEx1aCsvY.dqgaaSu76XmVlKrW9Qu8IQlvxHlmzLf",
            "$argon2id$v=19$m=65536,t=3,p=4$c29tZXNhbHQ$RdescudvJCsgt3ub+b27bA",
            "$pbkdf2-sha256$29000$N2YMIWQsBWBMae09x1jrPQ$1t8iyB2A.WF/Z5JZv.lfCIhXXN33",
            "$scrypt$ln=16,r=8,p=1$aM15713r3Xsvxbi31lqr1Q$nFNh2CVHVjNldFVKDHDlm4CbdRSC",
            "pbkdf2_sha256$260000$salt$hash=",
            "pbkdf2_sha256$260000$abcdefghijkl$3Yl1mGuwX3Dq0zYzGmS2bW7xvJ0iHkT0f3m0pR1c2dE=",
            "bcrypt_sha256$$2b$12$k87L/MF28Q673VKh8/cPi.SUl7MU/rWuSiIDDFayrKk",
            "argon2$argon2id$v=19$m=102400,t=2,p=8$c29tZXNhbHQ$RdescudvJCsgt3ub",
            "sha1$a1976$a36cc8cbf81742a8fb52e221aaeab48ed7f58ab4",
            "pbkdf2:sha256:260000$abcdefgh$0123456789abcdef0123456789abcdef",
            "!J4uFw0Vn3yKp5rTz8aBcQ2eXh7mLd9sGi6oUNvCk",
            "{SSHA}DkMTwBl+a/3DQTxCYEApdUtNXGgdUac3",
            "{bcrypt}$2a$10$dXJ3SW6G7P50lGmMkkmwe.20cQQubK3.HZWzG3YB1tlRy.fqvM/BG",
            "{SHA256}K7gNU3sdo+OL0wNhqoVWhr3g6s1xYv72ol/pe/Unols=",
            "{SSHA512.HEX}0123456789abcdef",
            "{noop}secret-word",
            "{x-issha, 1024}hkJSMTM0NTY3ODkw",
            "md5bdd66a1a1a3ed1d4b1e6d4f34b1e1cc3",
            "*2470C0C06DEE42FD1618BB99005ADCA2EC9D1E19",
            "SCRAM-SHA-256$4096:c2FsdHNhbHQ=$c3RvcmVk:c2VydmVy",
            "5f4dcc3b5aa765d61d8327deb882cf99:saltysalt",
            "sha256:64000:18:c2FsdHNhbHQ:aGFzaGhhc2g",
        ] {
            assert_eq!(detect_hash(hash), HashLike::Format, "{hash}");
        }
    }

    #[test]
    fn bare_digests_are_detected_as_digests() {
        for digest in [
            "5f4dcc3b5aa765d61d8327deb882cf99",
            "5F4DCC3B5AA765D61D8327DEB882CF99",
            "5baa61e4c9b93f3f0682250b6cf8331b7ee68fd8",
            "5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8",
            "XohImNooBHFR0OVvjcYpJ3NgPQ1qq73WKhHvch0VQtg=",
            "XohImNooBHFR0OVvjcYpJ3NgPQ1qq73WKhHvch0VQtg",
            "X03MO1qnZdYdgyfeuILPmQ==",
            "W6ph5Mm5Pz8GgiULbPgzG37mj9g=",
        ] {
            assert_eq!(detect_hash(digest), HashLike::Digest, "{digest}");
        }
    }

    #[test]
    fn ordinary_passwords_are_not_detected() {
        for password in [
            "secret-word",
            "correct horse battery staple",
            "correct-horse-battery-staple-and-some-more",
            "correcthorsebatterystaplecor",
            "$1$money",
            "$ave $ome $ugar",
            "$ecret$word",
            "$HOME$PATH$and$more$variables",
            "pa$$word",
            "{hello} world",
            "{SSHA",
            "md5",
            "!important",
            "*****",
            "bcrypt$is$good",
            "user:password:more",
            "f47ac10b-58cc-4372-a567-0e02b2c3d479",
            "deadbeef",
            "0123456789abcdef",
            "sha256:yes",
            "k87LMF28Q673VKh8cPiSUl",
        ] {
            assert_eq!(detect_hash(password), HashLike::No, "{password}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(5_000))]

        #[test]
        fn generated_passwords_are_no_format(password in "[ -~]{6,71}") {
            prop_assert_ne!(detect_hash(&password), HashLike::Format);
        }

        #[test]
        fn generated_letters_and_digits_are_no_format(password in "[A-Za-z0-9]{6,71}") {
            prop_assert_ne!(detect_hash(&password), HashLike::Format);
        }

        #[test]
        fn words_are_not_detected(password in "[a-z]{3,9}([ ._-]?[A-Z]?[a-z]{2,8}){1,6}[0-9]{0,4}[!?$]?") {
            let expected = match password.len() {
                43 | 64 | 86 if !password.contains([' ', '.', '!', '?', '$']) => HashLike::Digest,
                _ => HashLike::No,
            };
            prop_assert_eq!(detect_hash(&password), expected);
        }

        #[test]
        fn uuids_and_short_hexadecimal_are_not_detected(
            uuid in "[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}",
            short in "[0-9a-f]{6,31}",
        ) {
            prop_assert_eq!(detect_hash(&uuid), HashLike::No);
            prop_assert_eq!(detect_hash(&short), HashLike::No);
        }
    }
}
