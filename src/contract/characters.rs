//! Which characters a user name or an address may have: none that cannot be seen or that turns the
//! direction of a text, and on request none that look like those of another script.

use icu_properties::CodePointSetData;
use icu_properties::props::{BidiControl, DefaultIgnorableCodePoint};
use unicode_normalization::UnicodeNormalization;
use unicode_properties::{GeneralCategoryGroup, UnicodeGeneralCategory};
use unicode_security::{RestrictionLevel, RestrictionLevelDetection};

/// U+2800 is a symbol with a glyph, which has no dot.
const BRAILLE_BLANK: char = '\u{2800}';

/// Whether a character has no glyph of its own (Default_Ignorable_Code_Point) or changes the direction of
/// what follows (Bidi_Control): two texts that differ in it alone look the same.
pub(super) fn is_invisible(c: char) -> bool {
    c == BRAILLE_BLANK
        || const { CodePointSetData::new::<DefaultIgnorableCodePoint>() }.contains(c)
        || const { CodePointSetData::new::<BidiControl>() }.contains(c)
}

/// Whether there is nothing to see in a text.
pub(super) fn is_blank(text: &str) -> bool {
    text.chars().all(|c| c.is_whitespace() || c.is_control() || is_invisible(c))
}

/// Whether letters, marks and digits of a text are of several scripts, or are none that identifiers should
/// have: more than the level "moderately restrictive" of UTS 39 allows. Space, punctuation and symbols
/// belong to no script and are not looked at.
pub(super) fn mixes_scripts(text: &str) -> bool {
    use GeneralCategoryGroup::{Letter, Mark, Number};
    let is_of_a_script = |c: &char| matches!(c.general_category_group(), Letter | Mark | Number);
    let letters: String = text.nfc().filter(is_of_a_script).collect();
    !letters.check_restriction_level(RestrictionLevel::ModeratelyRestrictive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_seen_is_known() {
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
    fn look_alikes_of_another_script_are_known() {
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
