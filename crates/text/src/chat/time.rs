//! `strftime` for templates that print today's date. English names, no locale, no time zones:
//! the caller hands in local time.

use std::fmt::Write;

const DAYS: [&str; 7] =
    ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
/// Longest format string in bytes.
const PATTERN_BYTES_MAX: usize = 1000;

/// `now` (seconds since 1970, local time) by a `strftime` pattern.
///
/// # Errors
/// A message naming the directive that is not known.
pub(super) fn format(now: i64, pattern: &str) -> Result<String, String> {
    if pattern.len() > PATTERN_BYTES_MAX {
        return Err(format!("strftime_now: pattern longer than {PATTERN_BYTES_MAX} bytes"));
    }
    let date = Date::from_seconds(now);
    let mut out = String::new();
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = chars.next().unwrap_or('%');
        let bare = directive == '-';
        if bare {
            directive = chars.next().unwrap_or('%');
        }
        date.write(directive, bare, &mut out)
            .ok_or_else(|| format!("strftime_now: `%{directive}` is not supported"))?;
    }
    Ok(out)
}

/// A moment, taken apart.
struct Date {
    year: i64,
    /// 0 is January.
    month: usize,
    day: i64,
    /// 0 is Monday.
    weekday: usize,
    /// 1 is the first of January.
    day_of_year: i64,
    second_of_day: i64,
}

impl Date {
    /// The proleptic Gregorian calendar, counted in years that begin in March so that the leap
    /// day comes last.
    fn from_seconds(seconds: i64) -> Date {
        let seconds = seconds.clamp(-62_135_596_800, 253_402_300_799);
        let days = seconds.div_euclid(86_400);
        let since_era = days + 719_468;
        let era = since_era.div_euclid(146_097);
        let day_of_era = since_era.rem_euclid(146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_from_march = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_from_march + 2) / 153;
        let day = day_from_march - (153 * month_from_march + 2) / 5 + 1;
        let month = (month_from_march + 2) % 12;
        let year = year_of_era + era * 400 + i64::from(month < 2);
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let before = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334][month as usize];
        Date {
            year,
            month: month as usize,
            day,
            weekday: (days + 3).rem_euclid(7) as usize,
            day_of_year: before + day + i64::from(leap && month > 1),
            second_of_day: seconds.rem_euclid(86_400),
        }
    }

    /// Appends one directive; `bare` leaves the padding zero out.
    fn write(&self, directive: char, bare: bool, out: &mut String) -> Option<()> {
        let (hour, minute) = (self.second_of_day / 3600, self.second_of_day / 60 % 60);
        let padded = |value: i64, width: usize, out: &mut String| {
            let width = if bare { 0 } else { width };
            write!(out, "{value:0width$}").expect("writing to a string cannot fail");
        };
        match directive {
            'Y' => padded(self.year, 4, out),
            'y' => padded(self.year % 100, 2, out),
            'm' => padded(self.month as i64 + 1, 2, out),
            'd' => padded(self.day, 2, out),
            'e' => write!(out, "{:2}", self.day).expect("writing to a string cannot fail"),
            'j' => padded(self.day_of_year, 3, out),
            'H' => padded(hour, 2, out),
            'I' => padded((hour + 11) % 12 + 1, 2, out),
            'M' => padded(minute, 2, out),
            'S' => padded(self.second_of_day % 60, 2, out),
            'p' => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            'A' => out.push_str(DAYS[self.weekday]),
            'a' => out.push_str(&DAYS[self.weekday][..3]),
            'B' => out.push_str(MONTHS[self.month]),
            'b' | 'h' => out.push_str(&MONTHS[self.month][..3]),
            'F' => {
                self.write('Y', false, out)?;
                out.push('-');
                self.write('m', false, out)?;
                out.push('-');
                self.write('d', false, out)?;
            }
            'T' => {
                self.write('H', false, out)?;
                out.push(':');
                self.write('M', false, out)?;
                out.push(':');
                self.write('S', false, out)?;
            }
            '%' => out.push('%'),
            _ => return None,
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let check = |now, pattern: &str, expected: &str| {
            assert_eq!(format(now, pattern).unwrap(), expected);
        };
        check(0, "%A, %d %B %Y %H:%M:%S %j", "Thursday, 01 January 1970 00:00:00 001");
        check(951_782_400, "%F %a %-d", "2000-02-29 Tue 29");
        check(1_795_305_599, "%d %b %y, %I:%M %p", "21 Nov 26, 11:59 PM");
        check(-1, "%F %T", "1969-12-31 23:59:59");
        assert!(format(0, "%Q").is_err());
    }
}
