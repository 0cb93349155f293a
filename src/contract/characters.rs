//! Character checks for user names and addresses: invisible and direction-changing characters, and
//! mixed scripts.

use icu_properties::CodePointSetData;
use icu_properties::props::{BidiControl, DefaultIgnorableCodePoint};
use unicode_normalization::UnicodeNormalization;
use unicode_properties::{GeneralCategoryGroup, UnicodeGeneralCategory};
use unicode_security::{RestrictionLevel, RestrictionLevelDetection};

/// Braille pattern blank. Unicode counts it as a visible symbol, but its glyph is empty.
const BRAILLE_BLANK: char = '\u{2800}';

/// Whether a character is invisible (Default_Ignorable_Code_Point) or changes the text direction
/// (Bidi_Control). Two strings that differ only in such characters look the same.
pub(super) fn is_invisible(c: char) -> bool {
    c == BRAILLE_BLANK
        || const { CodePointSetData::new::<DefaultIgnorableCodePoint>() }.contains(c)
        || const { CodePointSetData::new::<BidiControl>() }.contains(c)
}

/// Whether a string has no visible character. Control characters count as invisible.
pub(super) fn is_blank(text: &str) -> bool {
    text.chars().all(|c| c.is_whitespace() || c.is_control() || is_invisible(c))
}

/// Whether the letters, marks and digits of a string exceed the level "moderately restrictive" of
/// UTS 39: they mix scripts, or are not meant for identifiers. Space, punctuation and symbols are
/// ignored.
pub(super) fn mixes_scripts(text: &str) -> bool {
    use GeneralCategoryGroup::{Letter, Mark, Number};
    let has_script = |c: &char| matches!(c.general_category_group(), Letter | Mark | Number);
    let letters: String = text.nfc().filter(has_script).collect();
    !letters.check_restriction_level(RestrictionLevel::ModeratelyRestrictive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invisible_characters_are_detected() {
        for c in
            "\u{200b}\u{200d}\u{feff}\u{202e}\u{2066}\u{61c}\u{3164}\u{fe0f}\u{34f}\u{2800}\u{ad}\
            \u{115f}\u{17b4}\u{180b}\u{ffa0}\u{e0001}\u{e0100}"
                .chars()
        {
            assert!(is_invisible(c), "{:x}", u32::from(c));
        }
        for c in "a é用\u{301}٣ \u{3000}😀\u{2801}".chars() {
            assert!(!is_invisible(c), "{:x}", u32::from(c));
        }
        for blank in ["", " \t", "\u{200b}", "\u{3000}\u{3164}\u{2800}"] {
            assert!(is_blank(blank), "{blank:?}");
        }
        assert!(!is_blank("\u{200b}a"));
    }

    #[test]
    fn mixed_scripts_are_detected() {
        for mixed in [
            "\u{430}dmin",   // Cyrillic а
            "p\u{3b1}ypal",  // Greek α
            "\u{ff41}dmin",  // full width
            "\u{1d41a}dmin", // mathematical bold
            "Ann \u{410}nna",
            "\u{430}\u{3b1}",
        ] {
            assert!(mixes_scripts(mixed), "{mixed}");
        }
        for single in [
            "John Doe",
            "o'neill-99_!",
            "Jo\u{308}rg",
            "Анна Каренина",
            "Μαρία",
            "田中さくら Ken",
            "김민수 Kim",
            "राम२",
            "😀 ann",
            "",
        ] {
            assert!(!mixes_scripts(single), "{single}");
        }
    }
}
