//! An email address and its uniqueness key. All spellings of one mailbox have the same key.
//!
//! The address syntax is checked by the rules in `contract`.

use icu_casemap::CaseMapper;
use idna::uts46::{AsciiDenyList, DnsLength, Hyphens, Uts46};
use unicode_normalization::UnicodeNormalization;

/// An email address and its uniqueness key.
#[derive(Clone, PartialEq, Eq)]
pub struct Email {
    address: String,
    key: String,
}

impl Email {
    /// Version of the key derivation in [`Email::new`], stored with every key. Increase it with each
    /// change that gives an existing address another key; `muster reindex` then recomputes stored keys.
    ///
    /// Version 1: the whole address in NFC and lower case. Version 2: as [`Email::new`] describes.
    pub const KEY_VERSION: i32 = 2;

    /// Derives the key of an address: the local part after Unicode's default case folding, in NFC, and
    /// the domain in its ASCII form (UTS 46). A domain in its own script, in punycode or in full-width
    /// letters therefore gives the same key. Returns `None` if the domain has no ASCII form.
    pub fn new(address: String) -> Option<Self> {
        let (local, domain) = address.rsplit_once('@')?;
        let key = format!("{}@{}", fold(local), ascii(domain)?);
        Some(Self { address, key })
    }

    /// Returns the address as the client sent it.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Returns the key, which a unique index of the store covers.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Returns the domain in ASCII.
    pub fn domain(&self) -> &str {
        self.key.rsplit_once('@').map_or("", |(_, domain)| domain)
    }
}

/// Masks an address as `j***@example.com`, which lets a person recognize an address they know. A
/// string without an `@` is returned unchanged.
pub fn mask(text: &str) -> String {
    let Some((local, domain)) = text.rsplit_once('@') else { return text.to_owned() };
    let first: String = local.chars().take(1).collect();
    format!("{first}***@{domain}")
}

/// Returns the canonical caseless form (Unicode 3.13, D145), composed. Lower case would not suffice:
/// it turns `ΣΣ` into `σς`, which differs from `σσ`.
fn fold(local: &str) -> String {
    let decomposed: String = local.nfd().collect();
    CaseMapper::new().fold_string(&decomposed).nfc().collect()
}

/// Returns the ASCII form of a domain. Hyphens in the third and fourth position of a label are allowed,
/// because such hosts exist (`r3---sn-x.example`).
fn ascii(domain: &str) -> Option<String> {
    let ascii = Uts46::new().to_ascii(
        domain.as_bytes(),
        AsciiDenyList::STD3,
        Hyphens::CheckFirstLast,
        DnsLength::Verify,
    );
    Some(ascii.ok()?.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(address: &str) -> Option<String> {
        Email::new(address.to_owned()).map(|email| email.key)
    }

    #[test]
    fn spellings_of_one_mailbox_have_the_same_key() {
        for (addresses, expected) in [
            (&["Ann@Example.COM", "ann@example.com"][..], "ann@example.com"),
            (&["J\u{f6}rg@a.example", "jo\u{308}rg@A.example"], "j\u{f6}rg@a.example"),
            (&["ΣΣ@a.example", "σς@a.example", "σσ@a.example"], "σσ@a.example"),
            (&["Straße@a.example", "STRASSE@a.example"], "strasse@a.example"),
            (
                &[
                    "ann@bücher.example",
                    "ann@BÜCHER.example",
                    "ann@bu\u{308}cher.example",
                    "ann@xn--bcher-kva.example",
                    "ann@XN--BCHER-KVA.example",
                    "ann@ｂücher.ｅxample",
                ],
                "ann@xn--bcher-kva.example",
            ),
            (&["a@faß.example", "a@xn--fa-hia.example"], "a@xn--fa-hia.example"),
            (&["a@fass.example"], "a@fass.example"),
            (&["a@r3---sn-x.example"], "a@r3---sn-x.example"),
        ] {
            for address in addresses {
                assert_eq!(key(address).as_deref(), Some(expected), "{address}");
            }
        }
    }

    #[test]
    fn domain_without_ascii_form_is_rejected() {
        for address in [
            "a",
            "a@",
            "a@xn--zzzzzz99999.example",
            "a@xn--abc-.example",
            "a@b.example.",
            "a@b..example",
            "a@-b.example",
            "a@b_c.example",
            &format!("a@{}.example", "é".repeat(60)),
        ] {
            assert_eq!(key(address), None, "{address}");
        }
    }

    #[test]
    fn address_is_returned_as_it_was_sent() {
        let email = Email::new("J\u{f6}rg@B\u{fc}cher.Example".to_owned()).unwrap();
        assert_eq!(email.address(), "J\u{f6}rg@B\u{fc}cher.Example");
        assert_eq!(email.domain(), "xn--bcher-kva.example");
    }
}
