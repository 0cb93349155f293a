//! Validation rules that the contracts share, without their messages.
//!
//! Each rule takes the value of a field and returns the checked value or the first [`Violation`], in
//! the order type, minimum or format, maximum, characters, bytes. The `validator` crate checks lengths
//! in code points and the HTML5 address syntax.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use secrecy::SecretString;
use unicode_normalization::UnicodeNormalization;
use unicode_properties::{GeneralCategory, GeneralCategoryGroup, UnicodeGeneralCategory};
use validator::{ValidateEmail, ValidateLength};

use super::Policy;
use super::characters::{is_blank, is_invisible};
use super::document::TextValue;
use crate::domain::Email;

/// Maximum length of a first or last name, in code points.
pub const NAME_MAX: u64 = 100;
/// Maximum length of a user name, in code points.
pub const USERNAME_MAX: u64 = 64;
/// Maximum length of a password, in bytes: bcrypt ignores any further bytes (OpenBSD's `bcrypt(3)`).
pub const PASSWORD_MAX_BYTES: usize = 72;
/// Costs of the bcrypt hashes that are accepted. A lower cost gives little protection; with a higher
/// one, each login would occupy a core for seconds.
pub const HASH_COSTS: RangeInclusive<u32> = 8..=14;
/// Length of a bcrypt hash string, in characters.
pub const HASH_LENGTH: usize = 60;
/// Maximum length of an address, in bytes (RFC 5321, 4.5.3.1.3, without the angle brackets).
pub const EMAIL_MAX_BYTES: usize = 254;
/// Maximum length of an address's local part, in bytes (RFC 5321, 4.5.3.1.1).
pub const LOCAL_MAX_BYTES: usize = 64;
/// Maximum length of a domain label, in bytes (RFC 1035, 2.3.4).
pub const LABEL_MAX_BYTES: usize = 63;

/// Valid last characters of the 22-character salt in a bcrypt hash. That character encodes 2 bits.
pub const SALT_ENDS: &str = ".Oeu";
/// Valid last characters of the 31-character digest in a bcrypt hash. That character encodes 4 bits.
pub const DIGEST_ENDS: &str = ".CGKOSWaeimquy26";

/// The first rule that a value violates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// The value is missing or null.
    Missing,
    /// The value is not a string.
    WrongType,
    /// The value is empty. Where white space is trimmed, a string without a visible character is empty.
    Empty,
    /// The value is shorter than the contract's minimum.
    TooShort,
    /// The value is not an email address.
    NotAnAddress,
    /// The value is longer than the maximum.
    TooLong,
    /// The value has a control character. In a user name or an address: also an invisible character,
    /// or a combination of scripts that the policy forbids.
    ForbiddenCharacter,
    /// The password is longer than [`PASSWORD_MAX_BYTES`].
    TooManyBytes,
    /// The password is shorter than the policy's minimum, which is this number of code points.
    BelowPolicyMinimum(u64),
    /// The password is in the policy's list of common passwords.
    CommonPassword,
}

/// Returns the string of a required field, unchecked.
pub fn text(field: &TextValue) -> Result<&str, Violation> {
    match field {
        TextValue::Absent => Err(Violation::Missing),
        TextValue::WrongType => Err(Violation::WrongType),
        TextValue::Text(text) => Ok(text),
    }
}

/// Validates a required name of `min` to [`NAME_MAX`] code points. Returns it trimmed.
pub fn name(field: &TextValue, min: u64) -> Result<String, Violation> {
    let name = text(field)?.trim();
    if !name.is_empty() && is_empty(name) {
        return Err(Violation::Empty);
    }
    check_length(name, min, NAME_MAX)?;
    check_no_control(name)?;
    Ok(name.to_owned())
}

/// Validates an optional name. Returns `None` if it is missing, null, empty or white space.
pub fn optional_name(field: &TextValue, min: u64) -> Result<Option<String>, Violation> {
    match field {
        TextValue::Absent => Ok(None),
        TextValue::Text(text) if text.trim().is_empty() => Ok(None),
        given => name(given, min).map(Some),
    }
}

/// Validates a user name of 1 to [`USERNAME_MAX`] code points without control or invisible
/// characters; in a single script if the policy requires it. Returns it trimmed and in NFC.
pub fn username(field: &TextValue, policy: &Policy) -> Result<String, Violation> {
    let name: String = text(field)?.trim().nfc().collect();
    if is_empty(&name) {
        return Err(Violation::Empty);
    }
    check_length(&name, 1, USERNAME_MAX)?;
    check_no_control(&name)?;
    if name.contains(is_invisible) || !policy.allows_scripts(&name) {
        return Err(Violation::ForbiddenCharacter);
    }
    Ok(name)
}

/// Validates an email address. If it would be valid without its invisible characters, the violation
/// is [`Violation::ForbiddenCharacter`]: the format looks right to the user.
pub fn email(field: &TextValue, policy: &Policy) -> Result<Email, Violation> {
    let address = text(field)?;
    if address.contains(is_invisible) {
        let visible: String = address.chars().filter(|c| !is_invisible(*c)).collect();
        return Err(if is_address(&visible) {
            Violation::ForbiddenCharacter
        } else {
            Violation::NotAnAddress
        });
    }
    let email = parse_address(address).ok_or(Violation::NotAnAddress)?;
    let local = address.rsplit_once('@').map_or("", |(local, _)| local);
    if policy.allows_scripts(local) { Ok(email) } else { Err(Violation::ForbiddenCharacter) }
}

/// Validates a password of at least `min` code points, or the policy's minimum if that is larger. The
/// password is not trimmed.
pub fn password(field: &TextValue, min: u64, policy: &Policy) -> Result<SecretString, Violation> {
    let password = text(field)?;
    let required = policy.min_length(min);
    // Reported first: with the contract's smaller minimum, the next attempt could fail again.
    if required > min {
        check_length(password, required, u64::MAX)
            .map_err(|_| Violation::BelowPolicyMinimum(required))?;
    }
    check_length(password, min, u64::MAX)?;
    check_bcrypt_limits(password)?;
    if policy.is_common(password) {
        return Err(Violation::CommonPassword);
    }
    Ok(SecretString::from(password))
}

/// Rejects passwords that bcrypt does not hash completely: some implementations stop at U+0000, and
/// all ignore what exceeds [`PASSWORD_MAX_BYTES`].
fn check_bcrypt_limits(password: &str) -> Result<(), Violation> {
    if password.contains('\0') {
        return Err(Violation::ForbiddenCharacter);
    }
    if password.len() > PASSWORD_MAX_BYTES {
        return Err(Violation::TooManyBytes);
    }
    Ok(())
}

/// Whether a string is an acceptable bcrypt hash: version `2a`, `2b` or `2y`, a cost within
/// [`HASH_COSTS`], and 16 bytes of salt and 23 bytes of digest in bcrypt's base64. The unused bits of
/// the last characters must be zero, as bcrypt writes them.
pub fn is_bcrypt(text: &str) -> bool {
    let is_version = ["$2a$", "$2b$", "$2y$"].iter().any(|version| text.starts_with(version));
    let Some((cost, rest)) = text.get(4..).and_then(|rest| rest.split_once('$')) else {
        return false;
    };
    let is_cost = HASH_COSTS.map(|valid| format!("{valid:02}")).any(|valid| valid == cost);
    let is_base64 = rest.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'.' || c == b'/');
    let is_one_of = |c: u8, valid: &str| valid.as_bytes().contains(&c);
    let has_valid_ends = |rest: &[u8]| {
        rest.len() == 53 && is_one_of(rest[21], SALT_ENDS) && is_one_of(rest[52], DIGEST_ENDS)
    };
    text.len() == HASH_LENGTH
        && is_version
        && is_cost
        && is_base64
        && has_valid_ends(rest.as_bytes())
}

/// Whether a string has an upper-case letter (general category Lu).
pub fn has_uppercase(text: &str) -> bool {
    text.chars().any(|c| c.general_category() == GeneralCategory::UppercaseLetter)
}

/// Whether a string has a decimal digit (general category Nd).
pub fn has_digit(text: &str) -> bool {
    text.chars().any(|c| c.general_category() == GeneralCategory::DecimalNumber)
}

/// Whether a string has a symbol: a character that is not a letter, mark or number. A space counts.
pub fn has_symbol(text: &str) -> bool {
    use GeneralCategoryGroup::{Letter, Mark, Number};
    text.chars().any(|c| !matches!(c.general_category_group(), Letter | Mark | Number))
}

/// Whether a string is an email address: HTML5 syntax extended to any script (RFC 6531), a domain with
/// a dot and an ASCII form (UTS 46), and no invisible characters.
pub fn is_address(address: &str) -> bool {
    parse_address(address).is_some()
}

fn parse_address(address: &str) -> Option<Email> {
    if !has_address_syntax(address) || address.contains(is_invisible) {
        return None;
    }
    // Checked on the ASCII form, because full-width digits can also form an IPv4 address.
    Email::new(address.to_owned()).filter(|email| email.domain().parse::<Ipv4Addr>().is_err())
}

fn has_address_syntax(address: &str) -> bool {
    let Some((local, domain)) = address.rsplit_once('@') else { return false };
    let dots_are_inside = !local.starts_with('.') && !local.ends_with('.') && !local.contains("..");
    let labels_fit = domain.split('.').all(|label| (1..=LABEL_MAX_BYTES).contains(&label.len()));
    address.len() <= EMAIL_MAX_BYTES
        && local.len() <= LOCAL_MAX_BYTES
        && dots_are_inside
        && domain.contains('.')
        && labels_fit
        && !domain.starts_with('[')
        && matches_html5(&to_ascii_pattern(address))
}

/// Whether an ASCII pattern has the HTML5 syntax. A remaining non-ASCII character, such as an emoji, is
/// rejected first, because `validate_email` would convert it as part of an internationalized domain.
fn matches_html5(pattern: &str) -> bool {
    pattern.is_ascii() && pattern.validate_email()
}

/// Replaces the non-ASCII letters, marks and digits with `a`, so that the HTML5 rule, which is defined
/// for ASCII, accepts them wherever it accepts a letter.
fn to_ascii_pattern(address: &str) -> String {
    let counts_as_letter = |c: char| {
        !c.is_ascii()
            && (c.general_category() == GeneralCategory::DecimalNumber
                || matches!(
                    c.general_category_group(),
                    GeneralCategoryGroup::Letter | GeneralCategoryGroup::Mark
                ))
    };
    address.chars().map(|c| if counts_as_letter(c) { 'a' } else { c }).collect()
}

fn check_length(text: &str, min: u64, max: u64) -> Result<(), Violation> {
    if !text.validate_length(Some(min), None, None) {
        return Err(Violation::TooShort);
    }
    if !text.validate_length(None, Some(max), None) {
        return Err(Violation::TooLong);
    }
    Ok(())
}

/// Whether a string has no visible character. A string with a control character is not empty, so that
/// the control character is reported.
fn is_empty(text: &str) -> bool {
    is_blank(text) && !text.contains(char::is_control)
}

fn check_no_control(text: &str) -> Result<(), Violation> {
    if text.chars().any(char::is_control) { Err(Violation::ForbiddenCharacter) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(text: &str) -> TextValue {
        TextValue::Text(text.to_owned().into())
    }

    #[test]
    fn addresses_are_accepted_or_rejected() {
        let label = "d".repeat(63);
        let long_local = format!("{}@b.co", "l".repeat(64));
        let long_label = format!("a@{label}.co");
        let longest = format!("{}@{label}.{label}.{}", "l".repeat(64), "e".repeat(61));
        assert_eq!(longest.len(), EMAIL_MAX_BYTES);
        for good in [
            "john.doe@example.com",
            "A@B.CO",
            "a+b@b.co",
            "jörg@example.com",
            "用户@例子.公司",
            "a@bücher.example",
            "a@xn--bcher-kva.example",
            "x_y-z!#$%&'*/=?^`{|}~@a-b.example",
            &long_local,
            &long_label,
            &longest,
        ] {
            assert!(is_address(good), "{good}");
        }
        for bad in [
            "",
            "a",
            "a@b",
            "@b.co",
            "a@.co",
            "a@b..co",
            "a@b.co.",
            ".a@b.co",
            "a.@b.co",
            "a..b@b.co",
            " a@b.co",
            "a@b.co ",
            "a@b.co\n",
            "\"a\"@b.co",
            "Ann <a@b.co>",
            "a@[127.0.0.1]",
            "a@127.0.0.1",
            "a@-b.co",
            "a@b-.co",
            "a@b_c.co",
            "😀@b.co",
            "a@😀.co",
            "a@b@c.co",
            "a\u{200d}b@c.co",
            "a\u{3164}b@c.co",
            "ab@c\u{fe0f}d.co",
            "a@xn--zzzzzz99999.co",
            "a@１.２.３.４",
            &format!("l{long_local}"),
            &format!("a@d{label}.co"),
            &format!("{longest}e"),
        ] {
            assert!(!is_address(bad), "{bad}");
        }
    }

    #[test]
    fn name_is_trimmed_and_counted_in_code_points() {
        assert_eq!(name(&field("  Zoë "), 3).unwrap(), "Zoë");
        assert_eq!(name(&field(" ab "), 3), Err(Violation::TooShort));
        assert_eq!(name(&field(&"é".repeat(100)), 3).map(|name| name.len()), Ok(200));
        assert_eq!(name(&field(&"é".repeat(101)), 3), Err(Violation::TooLong));
        assert_eq!(name(&field("ab\u{7}c"), 3), Err(Violation::ForbiddenCharacter));
        assert_eq!(optional_name(&field("  "), 3), Ok(None));
        assert_eq!(optional_name(&field("ab"), 3), Err(Violation::TooShort));
    }

    #[test]
    fn username_is_normalized_to_nfc() {
        let username = |name: &str| super::username(&field(name), &Policy::default());
        assert_eq!(username(" Jo\u{308}rg D ").unwrap(), "J\u{f6}rg D");
        assert_eq!(username(" \t "), Err(Violation::Empty));
        assert_eq!(username(&"x".repeat(65)), Err(Violation::TooLong));
    }

    #[test]
    fn invisible_characters_are_rejected_or_count_as_empty() {
        let policy = Policy::default();
        for hidden in
            ['\u{200b}', '\u{feff}', '\u{202e}', '\u{3164}', '\u{fe0f}', '\u{34f}', '\u{2800}']
        {
            let name = format!("an{hidden}n");
            assert_eq!(
                username(&field(&name), &policy),
                Err(Violation::ForbiddenCharacter),
                "{hidden:?}"
            );
            let nothing = format!(" {hidden}{hidden}{hidden} ");
            assert_eq!(username(&field(&nothing), &policy), Err(Violation::Empty), "{hidden:?}");
            assert_eq!(super::name(&field(&nothing), 3), Err(Violation::Empty), "{hidden:?}");
            assert_eq!(optional_name(&field(&nothing), 3), Err(Violation::Empty), "{hidden:?}");
            let address = |text: &str| email(&field(text), &policy).err();
            assert_eq!(address(&format!("an{hidden}n@b.co")), Some(Violation::ForbiddenCharacter));
            assert_eq!(address(&format!("ann@b{hidden}.co")), Some(Violation::ForbiddenCharacter));
            assert_eq!(address(&format!("an{hidden}n")), Some(Violation::NotAnAddress));
        }
        // Some scripts need joiners within a name.
        assert_eq!(super::name(&field("نامه\u{200c}ای"), 3).unwrap(), "نامه\u{200c}ای");
        assert_eq!(username(&field("a\u{7}"), &policy), Err(Violation::ForbiddenCharacter));
        assert_eq!(username(&field("\u{7}"), &policy), Err(Violation::ForbiddenCharacter));
    }

    #[test]
    fn mixed_scripts_are_rejected_only_by_the_policy() {
        let strict = Policy::default().with_single_script(true);
        for (policy, mixed) in
            [(Policy::default(), None), (strict, Some(Violation::ForbiddenCharacter))]
        {
            assert_eq!(username(&field("\u{430}dmin"), &policy).err(), mixed);
            assert_eq!(email(&field("\u{430}dmin@b.co"), &policy).err(), mixed);
            // Domains are exempt: UTS 46 and the domain registries restrict them.
            assert_eq!(email(&field("admin@\u{430}b.co"), &policy).err(), None);
            assert_eq!(username(&field("Анна"), &policy).err(), None);
            assert_eq!(username(&field("John Doe"), &policy).err(), None);
        }
    }

    #[test]
    fn password_has_a_minimum_in_code_points_and_a_maximum_in_bytes() {
        use secrecy::ExposeSecret;
        assert_eq!(
            password(&field("      "), 6, &Policy::default()).unwrap().expose_secret(),
            "      "
        );
        assert_eq!(
            password(&field("ééééé"), 6, &Policy::default()).unwrap_err(),
            Violation::TooShort
        );
        assert!(password(&field(&"x".repeat(72)), 6, &Policy::default()).is_ok());
        assert_eq!(
            password(&field(&"x".repeat(73)), 6, &Policy::default()).unwrap_err(),
            Violation::TooManyBytes
        );
        assert_eq!(
            password(&field("secret\0x"), 6, &Policy::default()).unwrap_err(),
            Violation::ForbiddenCharacter
        );
    }

    #[test]
    fn only_well_formed_bcrypt_hashes_are_accepted() {
        // Test vectors of jBCrypt.
        for hash in [
            "$2a$08$HqWuK6/Ng6sg9gQzbLrgb.Tl.ZHfXLhvt/SgVyWhQqgqcZ7ZuUtye",
            "$2a$10$k87L/MF28Q673VKh8/cPi.SUl7MU/rWuSiIDDFayrKk/1tBsSQu4u",
            "$2a$12$EXRkfkdmXn2gzds2SSitu.MW9.gAVqa9eLS1//RYtYCmB1eLHg.9q",
        ] {
            let (cost, rest) = hash[4..].split_once('$').unwrap();
            let with = |version: &str, cost: &str| format!("{version}{cost}${rest}");
            for version in ["$2a$", "$2b$", "$2y$"] {
                for cost in ["08", cost, "14"] {
                    assert!(is_bcrypt(&with(version, cost)), "{version}{cost}");
                }
                for cost in ["07", "15", "8", "+9", "010", ""] {
                    assert!(!is_bcrypt(&with(version, cost)), "{version}{cost}");
                }
            }
            for version in ["$2x$", "$2$", "$2B$", "$1a$", "2a$"] {
                assert!(!is_bcrypt(&with(version, cost)), "{version}");
            }
            assert!(!is_bcrypt(&hash[..59]) && !is_bcrypt(&format!("{hash}.")));
            for (at, other) in [(28, "/"), (59, "/"), (40, "-"), (40, "$")] {
                let mut damaged = hash.to_owned();
                damaged.replace_range(at..=at, other);
                assert!(!is_bcrypt(&damaged), "{damaged}");
            }
        }
    }

    #[test]
    fn character_classes_cover_any_script() {
        assert!(has_uppercase("xΩ") && !has_uppercase("xω中"));
        assert!(has_digit("٣") && !has_digit("Ⅷ½"));
        assert!(has_symbol("a€") && has_symbol("a_") && !has_symbol("aé\u{301}9½"));
        assert!(has_symbol("a b") && has_symbol("a\u{2003}b"), "white space is a symbol");
    }
}
