//! The limits of a source as people write them: rates with units, names for classes.

use holdfast_core::{HostLimits, IoClass};
use serde::{Deserialize, Serialize};

/// `limits` of a document; what is left out is not limited.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Limits {
    /// What is sent, per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    bandwidth: Option<Rate>,
    /// What is read from files, per second.
    #[serde(alias = "readRate", skip_serializing_if = "Option::is_none")]
    read_rate: Option<Rate>,
    /// 1 to 100.
    #[serde(alias = "cpuWeight", skip_serializing_if = "Option::is_none")]
    cpu_weight: Option<u32>,
    #[serde(alias = "ioClass", skip_serializing_if = "Option::is_none")]
    io_class: Option<String>,
    /// 0 to 7, of best-effort.
    #[serde(alias = "ioPriority", skip_serializing_if = "Option::is_none")]
    io_priority: Option<u32>,
}

impl Limits {
    /// The limits, each within its bounds.
    pub(super) fn host_limits(&self) -> Result<HostLimits, String> {
        let Self {
            bandwidth,
            read_rate,
            cpu_weight,
            io_class,
            io_priority,
        } = self;
        let limits = HostLimits {
            bandwidth: bandwidth.as_ref().map(|rate| rate.0),
            read_rate: read_rate.as_ref().map(|rate| rate.0),
            cpu_weight: *cpu_weight,
            io: IoClass::from_parts(io_class.as_deref().unwrap_or_default(), *io_priority)?,
        };
        limits.check()?;
        Ok(limits)
    }
}

/// Bytes per second: a number of them, or with a unit, as in `20MiB/s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RateText", into = "String")]
struct Rate(u64);

#[derive(Deserialize)]
#[serde(untagged)]
enum RateText {
    Bytes(u64),
    Text(String),
}

/// Units, binary ones first: rates are shown in the largest that divides them.
const UNITS: &[(&str, u64)] = &[
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1000),
    ("KB", 1000),
    ("B", 1),
    ("", 1),
];

impl TryFrom<RateText> for Rate {
    type Error = String;

    fn try_from(text: RateText) -> Result<Self, String> {
        match text {
            RateText::Bytes(bytes) => Ok(Self(bytes)),
            RateText::Text(text) => parse(&text).map(Self),
        }
    }
}

fn parse(text: &str) -> Result<u64, String> {
    let rate = text.trim();
    let rate = rate.strip_suffix("/s").unwrap_or(rate).trim_end();
    let digits = rate.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = &rate[digits.len()..];
    let Some((_, factor)) = UNITS.iter().find(|(name, _)| *name == unit) else {
        return Err(format!(
            "{text:?}: {unit:?} is not a unit: use KiB, MiB, GiB, kB, MB or GB, of bytes"
        ));
    };
    let number: u64 = digits
        .trim_end()
        .parse()
        .map_err(|_| format!("{text:?} is not a rate: write a whole number, for example 20MiB/s"))?;
    number
        .checked_mul(*factor)
        .ok_or_else(|| format!("{text:?} is too large"))
}

impl From<Rate> for String {
    fn from(Rate(bytes): Rate) -> Self {
        let fits = |(_, factor): &&(&str, u64)| bytes > 0 && bytes.is_multiple_of(*factor);
        let (unit, factor) = UNITS.iter().find(fits).unwrap_or(&("B", 1));
        format!("{}{unit}/s", bytes / factor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(yaml: &str) -> Result<HostLimits, String> {
        let limits: Limits = serde_norway::from_str(yaml).map_err(|error| error.to_string())?;
        // What is kept means the same.
        let kept = serde_norway::to_string(&limits).unwrap();
        assert_eq!(serde_norway::from_str::<Limits>(&kept).unwrap(), limits);
        limits.host_limits()
    }

    #[test]
    fn limits_are_written_for_people() {
        let limits =
            "{bandwidth: 20MiB/s, read_rate: 1500000, cpu_weight: 10, io_class: best-effort, io_priority: 7}";
        let expected = HostLimits {
            bandwidth: Some(20 << 20),
            read_rate: Some(1_500_000),
            cpu_weight: Some(10),
            io: Some(IoClass::BestEffort(7)),
        };
        assert_eq!(read(limits), Ok(expected));
        let camel = limits
            .replace("read_rate", "readRate")
            .replace("cpu_weight", "cpuWeight")
            .replace("io_class", "ioClass")
            .replace("io_priority", "ioPriority");
        assert_eq!(read(&camel), Ok(expected));
        assert_eq!(read("{}"), Ok(HostLimits::default()));
        for (text, bytes) in [
            ("5 MiB/s", 5 << 20),
            ("3MB", 3_000_000),
            ("2048", 2048),
            ("64KiB", 65536),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for (bytes, text) in [
            (5 << 20, "5MiB/s"),
            (1 << 30, "1GiB/s"),
            (1_500_000, "1500kB/s"),
            (1025, "1025B/s"),
        ] {
            assert_eq!(String::from(Rate(bytes)), text);
        }
    }

    #[test]
    fn mistakes_are_told_as_what_they_are() {
        for (yaml, why) in [
            ("{bandwidth: 10Mbit/s}", "not a unit"),
            ("{bandwidth: fast}", "not a unit"),
            ("{bandwidth: 1.5MiB/s}", "whole number"),
            ("{bandwidth: 99999999999GiB}", "too large"),
            ("{bandwidth: 0}", "leave it out"),
            ("{read_rate: 5B/s}", "1KiB/s"),
            ("{cpu_weight: 0}", "from 1 to 100"),
            ("{cpu_weight: 101}", "from 1 to 100"),
            ("{io_class: realtime}", "idle, best-effort or none"),
            ("{io_class: idle, io_priority: 3}", "best-effort alone"),
            ("{io_priority: 3}", "best-effort alone"),
            ("{io_class: best-effort, io_priority: 8}", "0 is served first"),
            ("{band: 1MiB}", "unknown field"),
        ] {
            let error = read(yaml).unwrap_err();
            assert!(error.contains(why), "{yaml}: {error}");
        }
    }
}
