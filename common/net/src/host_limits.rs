//! Limits of a host, from the wire and to it.

use holdfast_core::{HostLimits, IoClass};
use holdfast_proto::v1;

/// The limits of a message; none when it is absent.
///
/// # Errors
/// Says what is wrong, for people.
pub fn from_wire(wire: Option<v1::Limits>) -> Result<HostLimits, String> {
    let v1::Limits {
        bandwidth,
        read_rate,
        cpu_weight,
        io_class,
        io_priority,
    } = wire.unwrap_or_default();
    let limits = HostLimits {
        bandwidth: Some(bandwidth).filter(|rate| *rate > 0),
        read_rate: Some(read_rate).filter(|rate| *rate > 0),
        cpu_weight: Some(cpu_weight).filter(|weight| *weight > 0),
        io: IoClass::from_parts(&io_class, io_priority)?,
    };
    limits.check()?;
    Ok(limits)
}

/// The message of these limits.
#[must_use]
pub fn to_wire(limits: &HostLimits) -> v1::Limits {
    let HostLimits {
        bandwidth,
        read_rate,
        cpu_weight,
        io,
    } = *limits;
    v1::Limits {
        bandwidth: bandwidth.unwrap_or(0),
        read_rate: read_rate.unwrap_or(0),
        cpu_weight: cpu_weight.unwrap_or(0),
        io_class: io.map_or_else(String::new, |class| class.as_str().into()),
        io_priority: io.and_then(IoClass::priority),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_come_back_as_they_went_and_bad_ones_do_not() {
        let all = HostLimits {
            bandwidth: Some(5 << 20),
            read_rate: Some(7 << 20),
            cpu_weight: Some(10),
            io: Some(IoClass::BestEffort(7)),
        };
        let idle = HostLimits {
            io: Some(IoClass::Idle),
            ..HostLimits::default()
        };
        for limits in [all, idle, HostLimits::default()] {
            assert_eq!(from_wire(Some(to_wire(&limits))), Ok(limits));
        }
        assert_eq!(from_wire(None), Ok(HostLimits::default()));
        let bad = v1::Limits {
            cpu_weight: 101,
            ..v1::Limits::default()
        };
        assert!(from_wire(Some(bad)).is_err());
    }
}
