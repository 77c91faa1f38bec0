//! Room that text takes. The viewer chooses the font, so this is an estimate, on the wide side.

/// The width of a line of text, in the unit of `size`.
pub(crate) fn width(text: &str, size: f64) -> f64 {
    let ems = text.chars().map(|character| match character {
        ' ' | '.' | ',' | ':' | ';' | '\'' | '|' | '!' | 'i' | 'j' | 'l' => 0.33,
        '(' | ')' | '[' | ']' | '-' | '/' | 'f' | 'r' | 't' | 'I' => 0.42,
        'm' | 'w' | 'M' | 'W' | '%' | '@' => 0.96,
        'A'..='Z' => 0.72,
        // Latin letters and digits; further on are scripts with characters as wide as high.
        _ if character < '\u{2E80}' => 0.62,
        _ => 1.0,
    });
    ems.sum::<f64>() * size
}

/// Breaks a text between words into lines that fit; a word that fits nowhere is broken, too.
pub(crate) fn wrap(text: &str, size: f64, room: f64) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() {
            if width(&line, size) + width(" ", size) + width(word, size) <= room {
                line.push(' ');
            } else {
                lines.push(std::mem::take(&mut line));
            }
        }
        for character in word.chars() {
            line.push(character);
            if width(&line, size) > room && line.chars().count() > 1 {
                line.pop();
                lines.push(std::mem::take(&mut line));
                line.push(character);
            }
        }
    }
    if !line.is_empty() {
        lines.push(line);
    }
    lines
}

/// The text, or as much of it as fits.
pub(crate) fn fitted(text: &str, size: f64, room: f64) -> String {
    let mut lines = wrap(text, size, room).into_iter();
    let Some(first) = lines.next() else { return String::new() };
    if lines.next().is_none() {
        return first;
    }
    let whole = wrap(text, size, room - width("…", size)).into_iter().next().unwrap_or_default();
    format!("{whole}…")
}

/// A text without the control characters that XML has no way to write.
pub(crate) fn printable(text: &str) -> String {
    let is_forbidden = |character: char| {
        character < ' ' && !matches!(character, '\t' | '\n' | '\r')
            || matches!(character, '\u{FFFE}' | '\u{FFFF}')
    };
    let replaced = |character| if is_forbidden(character) { '\u{FFFD}' } else { character };
    text.chars().map(replaced).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_broken_between_words() {
        let text = "one two three four";
        let lines = wrap(text, 10.0, width("one two t", 10.0));
        assert_eq!(lines, ["one two", "three", "four"]);
        assert_eq!(wrap(text, 10.0, 1e9), [text]);
        assert_eq!(wrap("", 10.0, 100.0), [""; 0]);
        assert_eq!(wrap(" \n ", 10.0, 100.0), [""; 0]);
    }

    #[test]
    fn long_words_are_broken_anywhere() {
        let lines = wrap("a xxxxxxxxxx", 10.0, width("xxxx", 10.0));
        assert_eq!(lines, ["a", "xxxx", "xxxx", "xx"]);
        assert_eq!(wrap("xy", 10.0, 0.0), ["x", "y"]);
    }

    #[test]
    fn what_does_not_fit_is_cut() {
        assert_eq!(fitted("short", 10.0, 100.0), "short");
        let cut = fitted("one two three four", 10.0, 70.0);
        assert!(cut.ends_with('…') && width(&cut, 10.0) <= 70.0, "{cut}");
    }

    #[test]
    fn control_characters_are_replaced() {
        assert_eq!(printable("a\u{0}b\u{1B}c\nd\u{FFFF}"), "a\u{FFFD}b\u{FFFD}c\nd\u{FFFD}");
    }
}
