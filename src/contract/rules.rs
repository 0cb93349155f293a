//! The rules that the contracts share, without their wording. Each takes what stands at a key and
//! gives the checked value or the first rule it breaks, in the order: type, minimum or format,
//! maximum, characters, bytes. The `validator` crate does what it knows: lengths in code points and
//! the HTML5 address.

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

/// Longest first or last name, in code points.
pub const NAME_MAX: u64 = 100;
/// Longest user name, in code points.
pub const USERNAME_MAX: u64 = 64;
/// Longest password, in bytes: bcrypt reads no further (OpenBSD's `bcrypt(3)`).
pub const PASSWORD_MAX_BYTES: usize = 72;
/// Costs of a bcrypt hash that is taken as it comes: below it protects little, above it a single login
/// would keep a processor busy for seconds.
pub const HASH_COSTS: RangeInclusive<u32> = 8..=14;
/// Length of a bcrypt hash, in characters.
pub const HASH_LENGTH: usize = 60;
/// Longest address, in bytes (RFC 5321, 4.5.3.1.3 less the angle brackets).
pub const EMAIL_MAX_BYTES: usize = 254;
/// Longest local part, in bytes (RFC 5321, 4.5.3.1.1).
pub const LOCAL_MAX_BYTES: usize = 64;
/// Longest label of a domain, in bytes (RFC 1035, 2.3.4).
pub const LABEL_MAX_BYTES: usize = 63;

/// What the last of a salt's 22 characters in a bcrypt string can be: it has 2 bits.
pub const SALT_ENDS: &str = ".Oeu";
/// What the last of a digest's 31 characters can be: it has 4 bits.
pub const DIGEST_ENDS: &str = ".CGKOSWaeimquy26";

/// The first rule that a value breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// Absent or null.
    Missing,
    /// Not a text.
    Type,
    /// Empty; where white space is trimmed also a text without a visible character.
    Empty,
    /// Shorter than the contract's minimum.
    Short,
    /// Not an address.
    Format,
    /// Longer than the maximum.
    Long,
    /// Holds a character that the field may not have: a control character; in a user name or an address
    /// also an invisible one, or scripts that the policy does not allow together.
    Characters,
    /// A password of more than [`PASSWORD_MAX_BYTES`].
    Bytes,
    /// A password of fewer code points than this, which the policy wants.
    Policy(u64),
    /// A password that the policy finds too common.
    Common,
}

/// The text of a field, whatever it says.
pub fn text(field: &TextValue) -> Result<&str, Violation> {
    match field {
        TextValue::Absent => Err(Violation::Missing),
        TextValue::WrongType => Err(Violation::WrongType),
        TextValue::Text(text) => Ok(text),
    }
}

/// A required first name of at least `min` code points, trimmed.
pub fn name(field: &TextValue, min: u64) -> Result<String, Violation> {
    let name = text(field)?.trim();
    if !name.is_empty() && is_empty(name) {
        return Err(Violation::Empty);
    }
    sized(name, min, NAME_MAX)?;
    no_control(name)?;
    Ok(name.to_owned())
}

/// An optional name: absent, null, empty and blank are all "none".
pub fn optional_name(field: &TextValue, min: u64) -> Result<Option<String>, Violation> {
    match field {
        TextValue::Absent => Ok(None),
        TextValue::Text(text) if text.trim().is_empty() => Ok(None),
        given => name(given, min).map(Some),
    }
}

/// A user name: trimmed, NFC, 1 to [`USERNAME_MAX`] code points, no control and no invisible characters;
/// of one script if the policy says so.
pub fn username(field: &TextValue, policy: &Policy) -> Result<String, Violation> {
    let name: String = text(field)?.trim().nfc().collect();
    if is_empty(&name) {
        return Err(Violation::Empty);
    }
    sized(&name, 1, USERNAME_MAX)?;
    no_control(&name)?;
    if name.contains(is_invisible) || !policy.allows_scripts(&name) {
        return Err(Violation::ForbiddenCharacter);
    }
    Ok(name)
}

/// An address. One that is valid without its invisible characters looks right to the user, so the error
/// reports the characters and not the format.
pub fn email(field: &TextValue, policy: &Policy) -> Result<Email, Violation> {
    let address = text(field)?;
    if address.contains(is_invisible) {
        let visible: String = address.chars().filter(|c| !is_invisible(*c)).collect();
        return Err(if is_address(&visible) { Violation::ForbiddenCharacter } else { Violation::NotAnAddress });
    }
    let email = parse_address(address).ok_or(Violation::NotAnAddress)?;
    let local = address.rsplit_once('@').map_or("", |(local, _)| local);
    if policy.allows_scripts(local) { Ok(email) } else { Err(Violation::ForbiddenCharacter) }
}

/// A password of at least `min` code points, or of more if the policy wants that; never trimmed.
pub fn password(field: &TextValue, min: u64, policy: &Policy) -> Result<SecretString, Violation> {
    let password = text(field)?;
    let wanted = policy.min_length(min);
    // Told before the contract's own minimum, or a second try would meet another one.
    if wanted > min {
        sized(password, wanted, u64::MAX).map_err(|_| Violation::BelowPolicyMinimum(wanted))?;
    }
    sized(password, min, u64::MAX)?;
    password_limits(password)?;
    if policy.is_common(password) {
        return Err(Violation::CommonPassword);
    }
    Ok(SecretString::from(password))
}

/// What bcrypt cannot take: U+0000, at which some of its implementations stop, and more bytes than
/// it reads.
fn password_limits(password: &str) -> Result<(), Violation> {
    if password.contains('\0') {
        return Err(Violation::ForbiddenCharacter);
    }
    if password.len() > PASSWORD_MAX_BYTES {
        return Err(Violation::TooManyBytes);
    }
    Ok(())
}

/// Whether a text is a bcrypt string that bcrypt itself could have written: one of the versions that are
/// sound, a cost within [`HASH_COSTS`], and in the alphabet of bcrypt 16 bytes of salt and 23 of digest,
/// whose last characters have bits that are always zero.
pub fn is_bcrypt(text: &str) -> bool {
    let sound = ["$2a$", "$2b$", "$2y$"].iter().any(|version| text.starts_with(version));
    let Some((cost, rest)) = text.get(4..).and_then(|rest| rest.split_once('$')) else {
        return false;
    };
    let cost_fits = HASH_COSTS.map(|cost| format!("{cost:02}")).any(|known| known == cost);
    let known = rest.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'.' || c == b'/');
    let ends = |c: u8, known: &str| known.as_bytes().contains(&c);
    let whole =
        |rest: &[u8]| rest.len() == 53 && ends(rest[21], SALT_ENDS) && ends(rest[52], DIGEST_ENDS);
    text.len() == HASH_LENGTH && sound && cost_fits && known && whole(rest.as_bytes())
}

/// Whether a text has an upper-case letter (Lu).
pub fn has_uppercase(text: &str) -> bool {
    text.chars().any(|c| c.general_category() == GeneralCategory::UppercaseLetter)
}

/// Whether a text has a decimal digit (Nd).
pub fn has_digit(text: &str) -> bool {
    text.chars().any(|c| c.general_category() == GeneralCategory::DecimalNumber)
}

/// Whether a text has a symbol: neither letter, mark nor number. A space counts.
pub fn has_symbol(text: &str) -> bool {
    use GeneralCategoryGroup::{Letter, Mark, Number};
    text.chars().any(|c| !matches!(c.general_category_group(), Letter | Mark | Number))
}

/// An HTML5-like address with a dot in its domain, in any script (RFC 6531), without invisible characters,
/// whose domain has an ASCII form (UTS 46).
pub fn is_address(address: &str) -> bool {
    parse_address(address).is_some()
}

fn parse_address(address: &str) -> Option<Email> {
    if !looks_like_an_address(address) || address.contains(is_invisible) {
        return None;
    }
    // Digits in full width are those of a host's number too.
    Email::new(address.to_owned()).filter(|email| email.domain().parse::<Ipv4Addr>().is_err())
}

fn looks_like_an_address(address: &str) -> bool {
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

/// The HTML5 rule. What is not ASCII by now (an emoji, say) would be taken as a domain to convert.
fn matches_html5(pattern: &str) -> bool {
    pattern.is_ascii() && pattern.validate_email()
}

/// Letters, marks and digits of every script stand where ASCII letters may: the HTML5 rule, which
/// knows only ASCII, then judges the rest.
fn to_ascii_pattern(address: &str) -> String {
    let stands_for_a_letter = |c: char| {
        !c.is_ascii()
            && (c.general_category() == GeneralCategory::DecimalNumber
                || matches!(
                    c.general_category_group(),
                    GeneralCategoryGroup::Letter | GeneralCategoryGroup::Mark
                ))
    };
    address.chars().map(|c| if stands_for_a_letter(c) { 'a' } else { c }).collect()
}

fn sized(text: &str, min: u64, max: u64) -> Result<(), Violation> {
    if !text.validate_length(Some(min), None, None) {
        return Err(Violation::TooShort);
    }
    if !text.validate_length(None, Some(max), None) {
        return Err(Violation::TooLong);
    }
    Ok(())
}

/// Whether nothing in a text can be seen. What has a control character has something wrong to report.
fn is_empty(text: &str) -> bool {
    is_blank(text) && !text.contains(char::is_control)
}

fn no_control(text: &str) -> Result<(), Violation> {
    if text.chars().any(char::is_control) { Err(Violation::ForbiddenCharacter) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(text: &str) -> TextValue {
        TextValue::Text(text.to_owned().into())
    }

    #[test]
    fn addresses() {
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
    fn names_are_trimmed_then_counted_in_code_points() {
        assert_eq!(name(&field("  Zoë "), 3).unwrap(), "Zoë");
        assert_eq!(name(&field(" ab "), 3), Err(Violation::TooShort));
        assert_eq!(name(&field(&"é".repeat(100)), 3).map(|name| name.len()), Ok(200));
        assert_eq!(name(&field(&"é".repeat(101)), 3), Err(Violation::TooLong));
        assert_eq!(name(&field("ab\u{7}c"), 3), Err(Violation::ForbiddenCharacter));
        assert_eq!(optional_name(&field("  "), 3), Ok(None));
        assert_eq!(optional_name(&field("ab"), 3), Err(Violation::TooShort));
    }

    #[test]
    fn usernames_are_composed() {
        let username = |name: &str| super::username(&field(name), &Policy::default());
        assert_eq!(username(" Jo\u{308}rg D ").unwrap(), "J\u{f6}rg D");
        assert_eq!(username(" \t "), Err(Violation::Empty));
        assert_eq!(username(&"x".repeat(65)), Err(Violation::TooLong));
    }

    #[test]
    fn what_cannot_be_seen_is_refused_or_empty() {
        let policy = Policy::default();
        for hidden in
            ['\u{200b}', '\u{feff}', '\u{202e}', '\u{3164}', '\u{fe0f}', '\u{34f}', '\u{2800}']
        {
            let name = format!("an{hidden}n");
            assert_eq!(username(&field(&name), &policy), Err(Violation::ForbiddenCharacter), "{hidden:?}");
            let nothing = format!(" {hidden}{hidden}{hidden} ");
            assert_eq!(username(&field(&nothing), &policy), Err(Violation::Empty), "{hidden:?}");
            assert_eq!(super::name(&field(&nothing), 3), Err(Violation::Empty), "{hidden:?}");
            assert_eq!(optional_name(&field(&nothing), 3), Err(Violation::Empty), "{hidden:?}");
            let address = |text: &str| email(&field(text), &policy).err();
            assert_eq!(address(&format!("an{hidden}n@b.co")), Some(Violation::ForbiddenCharacter));
            assert_eq!(address(&format!("ann@b{hidden}.co")), Some(Violation::ForbiddenCharacter));
            assert_eq!(address(&format!("an{hidden}n")), Some(Violation::NotAnAddress));
        }
        // Scripts need joiners within a name.
        assert_eq!(super::name(&field("نامه\u{200c}ای"), 3).unwrap(), "نامه\u{200c}ای");
        assert_eq!(username(&field("a\u{7}"), &policy), Err(Violation::ForbiddenCharacter));
        assert_eq!(username(&field("\u{7}"), &policy), Err(Violation::ForbiddenCharacter));
    }

    #[test]
    fn scripts_are_mixed_unless_the_policy_refuses() {
        let strict = Policy::default().with_single_script(true);
        for (policy, mixed) in [(Policy::default(), None), (strict, Some(Violation::ForbiddenCharacter))] {
            assert_eq!(username(&field("\u{430}dmin"), &policy).err(), mixed);
            assert_eq!(email(&field("\u{430}dmin@b.co"), &policy).err(), mixed);
            // UTS 46 and the registries see to domains.
            assert_eq!(email(&field("admin@\u{430}b.co"), &policy).err(), None);
            assert_eq!(username(&field("Анна"), &policy).err(), None);
            assert_eq!(username(&field("John Doe"), &policy).err(), None);
        }
    }

    #[test]
    fn passwords_are_counted_in_code_points_and_bounded_in_bytes() {
        use secrecy::ExposeSecret;
        assert_eq!(
            password(&field("      "), 6, &Policy::default()).unwrap().expose_secret(),
            "      "
        );
        assert_eq!(password(&field("ééééé"), 6, &Policy::default()).unwrap_err(), Violation::TooShort);
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
    fn hashes_are_as_bcrypt_writes_them() {
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
                let mut spoilt = hash.to_owned();
                spoilt.replace_range(at..=at, other);
                assert!(!is_bcrypt(&spoilt), "{spoilt}");
            }
        }
    }

    #[test]
    fn categories_hold_in_any_script() {
        assert!(has_uppercase("xΩ") && !has_uppercase("xω中"));
        assert!(has_digit("٣") && !has_digit("Ⅷ½"));
        assert!(has_symbol("a€") && has_symbol("a_") && !has_symbol("aé\u{301}9½"));
        assert!(has_symbol("a b") && has_symbol("a\u{2003}b"), "white space is a symbol");
    }
}
