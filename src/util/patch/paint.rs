//! The colours of git's patches.

/// What is coloured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Colour {
    /// The lines before the first hunk.
    Header,
    /// Where a hunk is.
    Hunk,
    /// A line that is gone.
    Old,
    /// A line that is new.
    New,
}

impl Colour {
    fn code(self) -> &'static [u8] {
        match self {
            Self::Header => b"\x1b[1m",
            Self::Hunk => b"\x1b[36m",
            Self::Old => b"\x1b[31m",
            Self::New => b"\x1b[32m",
        }
    }
}

const RESET: &[u8] = b"\x1b[m";

/// Whether colours are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Paint {
    /// Whether they are.
    pub(crate) on: bool,
}

impl Paint {
    /// Writes bytes in a colour.
    pub(crate) fn bytes(self, colour: Colour, bytes: &[u8], out: &mut Vec<u8>) {
        if self.on {
            out.extend_from_slice(colour.code());
        }
        out.extend_from_slice(bytes);
        if self.on {
            out.extend_from_slice(RESET);
        }
    }

    /// Writes a line in a colour, and ends it.
    pub(crate) fn line(self, colour: Colour, line: &[u8], out: &mut Vec<u8>) {
        self.line_with(colour, line, b"", out);
    }

    /// Does the same with more on the line that has no colour.
    pub(crate) fn line_with(self, colour: Colour, line: &[u8], more: &[u8], out: &mut Vec<u8>) {
        self.bytes(colour, line, out);
        out.extend_from_slice(more);
        out.push(b'\n');
    }
}
