//! Numbers of bytes, as people write them in configuration files.

use serde::Deserialize;

/// A number of bytes, written as a number or with KiB, MiB, GiB, TiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "SizeText")]
pub struct Size(pub u64);

#[derive(Deserialize)]
#[serde(untagged)]
enum SizeText {
    Bytes(u64),
    Text(String),
}

impl TryFrom<SizeText> for Size {
    type Error = String;
    fn try_from(text: SizeText) -> std::result::Result<Self, String> {
        let text = match text {
            SizeText::Bytes(bytes) => return Ok(Self(bytes)),
            SizeText::Text(text) => text,
        };
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == ' ');
        let shift = match text[digits.len()..].trim() {
            "" | "B" => 0,
            "KiB" => 10,
            "MiB" => 20,
            "GiB" => 30,
            "TiB" => 40,
            unit => return Err(format!("{unit:?} is not a unit: use KiB, MiB, GiB or TiB")),
        };
        let number: u64 = digits
            .trim()
            .parse()
            .map_err(|_| format!("{text:?} is not a size, for example \"10GiB\""))?;
        number
            .checked_mul(1 << shift)
            .map(Self)
            .ok_or_else(|| format!("{text:?} is too large"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(text: &str) -> Result<Size, String> {
        Size::try_from(SizeText::Text(text.into()))
    }

    #[test]
    fn sizes_have_binary_units() {
        assert_eq!(size("10GiB"), Ok(Size(10 << 30)));
        assert_eq!(size("64 MiB"), Ok(Size(64 << 20)));
        assert_eq!(size("7"), Ok(Size(7)));
        for bad in ["", "GiB", "1GB", "-1MiB", "1.5GiB", "99999999TiB", "lots"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
