//! Text for people.

use std::fmt;

/// Writes a text behind its label, in lines of at most `width` columns, with the lines after the first
/// below its start. A word that is too long, as paths and links are, stays whole so that it can be copied.
pub(crate) fn wrapped_to(
    width: usize,
    out: &mut impl fmt::Write,
    label: &str,
    text: &str,
) -> fmt::Result {
    let indent = label.chars().count();
    let mut line = label.to_owned();
    let mut column = indent;
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if column > indent {
            if column + 1 + length > width {
                writeln!(out, "{line}")?;
                line = " ".repeat(indent);
                column = indent;
            } else {
                line.push(' ');
                column += 1;
            }
        }
        line.push_str(word);
        column += length;
    }
    writeln!(out, "{}", line.trim_end())
}

/// Columns of a stream, such as standard output: the terminal's, if it is one, as far as lines stay
/// readable.
#[cfg(unix)]
pub(crate) fn columns(stream: impl std::os::fd::AsFd) -> usize {
    let size = rustix::termios::tcgetwinsize(stream).ok();
    let columns = size.map(|size| usize::from(size.ws_col)).filter(|&columns| columns > 0);
    columns.map_or(WIDTH, |columns| columns.clamp(40, WIDTH))
}

#[cfg(not(unix))]
pub(crate) fn columns<T>(_stream: T) -> usize {
    WIDTH
}

/// Columns of a line.
const WIDTH: usize = 96;

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(label: &str, text: &str) -> Vec<String> {
        let mut out = String::new();
        wrapped_to(WIDTH, &mut out, label, text).expect("writing to a string does not fail");
        out.lines().map(Into::into).collect()
    }

    #[test]
    fn long_texts_are_wrapped_below_their_start() {
        let lines = lines("label: ", &"word ".repeat(40));
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert!(lines[0].starts_with("label: word "));
        assert!(lines[1].starts_with("       word "));
        assert!(lines.iter().all(|line| line.len() <= WIDTH));
    }

    #[test]
    fn long_words_stay_whole() {
        let long = "x".repeat(200);
        assert_eq!(lines("label: ", &long), [format!("label: {long}")]);
        assert_eq!(
            lines("label: ", &format!("at {long}")),
            ["label: at".into(), format!("       {long}")]
        );
    }
}
