//! Numbers of bytes, as arguments and for people.

/// The smallest and the largest size to measure; those between double.
#[derive(clap::Args, Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// Smallest size of the largest buffer of a rank, like 8, 64K, 1M
    #[arg(short = 'b', long = "min", value_name = "SIZE", default_value = "8", value_parser = parse)]
    pub(crate) min: u64,

    /// Largest size [default: 64M, or 2G on GPUs]
    #[arg(short = 'e', long = "max", value_name = "SIZE", value_parser = parse)]
    pub(crate) max: Option<u64>,
}

impl Sizes {
    /// With a largest size where none was given.
    pub(crate) fn or_max(self, max: u64) -> Self {
        Self { max: self.max.or(Some(max)), ..self }
    }

    /// Up to a size at most.
    pub(crate) fn at_most(self, max: u64) -> Self {
        Self { max: Some(self.max.unwrap_or(max).min(max).max(self.min)), ..self }
    }

    /// As every program that is compared takes them.
    pub(crate) fn arguments(self) -> Vec<String> {
        let mut arguments = vec!["-b".into(), self.min.to_string()];
        if let Some(max) = self.max {
            arguments.extend(["-e".into(), max.to_string()]);
        }
        arguments
    }
}

/// `8 B`, `64 KiB`, `2 GiB`.
pub(crate) fn text(bytes: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    match units.into_iter().find(|(shift, _)| bytes > 0 && bytes.trailing_zeros() >= *shift) {
        Some((shift, unit)) => format!("{} {unit}", bytes >> shift),
        None => format!("{bytes} B"),
    }
}

fn parse(text: &str) -> Result<u64, String> {
    let wrong = || "want a number of bytes, like 8, 64K, 1M or 2G".to_owned();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit {
        "" => 0,
        "K" | "k" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).filter(|&bytes| bytes > 0).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_units() {
        for (written, bytes, name) in [
            ("8", 8, "8 B"),
            ("1000", 1000, "1000 B"),
            ("64K", 1 << 16, "64 KiB"),
            ("1m", 1 << 20, "1 MiB"),
            ("2G", 2 << 30, "2 GiB"),
        ] {
            assert_eq!(parse(written), Ok(bytes));
            assert_eq!(text(bytes), name);
        }
        for wrong in ["", "K", "0", "-1", "1.5M", "8T", "99999999999G"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_become_arguments() {
        let sizes = Sizes { min: 8, max: None };
        assert_eq!(sizes.or_max(64).arguments(), ["-b", "8", "-e", "64"]);
        assert_eq!(Sizes { min: 8, max: Some(16) }.or_max(64).arguments(), ["-b", "8", "-e", "16"]);
        assert_eq!(Sizes { min: 8, max: Some(128) }.at_most(64).max, Some(64));
        assert_eq!(Sizes { min: 128, max: Some(256) }.at_most(64).max, Some(128));
    }
}
