//! Lines between images and their parents, drawn with characters.

use crate::digest::Digest;

/// The state of the drawing: one column for each later image that a line leads to.
#[derive(Debug, Default)]
pub(super) struct Graph {
    columns: Vec<Digest>,
}

impl Graph {
    /// Draws an image whose children are all drawn: its line, and the lines to its parents.
    pub(super) fn node(&mut self, id: Digest, parents: &[Digest]) -> (String, Vec<String>) {
        let at = self.columns.iter().position(|column| *column == id).unwrap_or_else(|| {
            self.columns.push(id);
            self.columns.len() - 1
        });
        let node = self.draw(|column| Some((2 * column, if column == at { '*' } else { '|' })));
        let mut below = Vec::new();
        let Some((first, others)) = parents.split_first() else {
            if at + 1 < self.columns.len() {
                // The columns to the right move up.
                below.push(self.draw(|column| match column {
                    _ if column < at => Some((2 * column, '|')),
                    _ if column > at => Some((2 * column - 1, '/')),
                    _ => None,
                }));
            }
            self.columns.remove(at);
            return (node, below);
        };
        self.columns[at] = *first;
        for (number, other) in others.iter().enumerate() {
            let left = at + number;
            if self.columns[at..=left].contains(other) {
                continue;
            }
            let mut line = Line::new(&self.draw(|column| {
                Some(if column <= left { (2 * column, '|') } else { (2 * column + 1, '\\') })
            }));
            line.put(2 * left + 1, '\\');
            below.push(line.text());
            self.columns.insert(left + 1, *other);
        }
        // Two columns that lead to the same image become one.
        while let Some((left, right)) = self.twins() {
            let mut line = Line::new(&self.draw(|column| match column {
                _ if column < right => Some((2 * column, '|')),
                _ => Some((2 * column - 1, '/')),
            }));
            for column in left + 1..right {
                line.put(2 * column - 1, '_');
            }
            below.push(line.text());
            self.columns.remove(right);
        }
        (node, below)
    }

    fn twins(&self) -> Option<(usize, usize)> {
        (0..self.columns.len()).find_map(|right| {
            let left = self.columns[..right].iter().position(|column| *column == self.columns[right])?;
            Some((left, right))
        })
    }

    /// Returns a line with the content of each column.
    fn draw(&self, mut each: impl FnMut(usize) -> Option<(usize, char)>) -> String {
        let mut line = Line::default();
        for column in 0..self.columns.len() {
            if let Some((at, what)) = each(column) {
                line.put(at, what);
            }
        }
        line.text()
    }
}

#[derive(Default)]
struct Line(Vec<char>);

impl Line {
    fn new(text: &str) -> Self {
        Self(text.chars().collect())
    }

    fn put(&mut self, at: usize, what: char) {
        if self.0.len() <= at {
            self.0.resize(at + 1, ' ');
        }
        self.0[at] = what;
    }

    fn text(self) -> String {
        self.0.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(images: &[(&str, &[&str])]) -> Vec<String> {
        let id = |name: &&str| Digest::of(name.as_bytes());
        let mut graph = Graph::default();
        let mut lines = Vec::new();
        for (name, parents) in images {
            let (node, below) = graph.node(id(name), &parents.iter().map(id).collect::<Vec<_>>());
            lines.push(format!("{node} {name}"));
            lines.extend(below);
        }
        assert!(graph.columns.is_empty(), "{graph:?}");
        lines
    }

    #[test]
    fn a_line_of_descent_is_a_line() {
        assert_eq!(drawn(&[("c", &["b"]), ("b", &["a"]), ("a", &[])]), ["* c", "* b", "* a"]);
    }

    #[test]
    fn many_children_of_one_image_take_two_columns() {
        let images: [(&str, &[&str]); 5] =
            [("d", &["a"]), ("c", &["a"]), ("b", &["a"]), ("a", &[]), ("other", &[])];
        assert_eq!(drawn(&images), ["* d", "| * c", "|/", "| * b", "|/", "* a", "* other"]);
    }

    #[test]
    fn a_merge_has_a_line_to_each_parent() {
        let images: [(&str, &[&str]); 4] = [("m", &["b", "c"]), ("c", &["a"]), ("b", &["a"]), ("a", &[])];
        assert_eq!(drawn(&images), ["* m", "|\\", "| * c", "* | b", "|/", "* a"]);
        // Of the same image twice once.
        assert_eq!(drawn(&[("m", &["a", "a"]), ("a", &[])]), ["* m", "* a"]);
    }

    #[test]
    fn lines_that_lie_between_are_crossed() {
        let images: [(&str, &[&str]); 6] =
            [("x", &["a"]), ("y", &["b"]), ("z", &["a"]), ("w", &["c"]), ("b", &["a"]), ("c", &["a"])];
        let images = [&images[..], &[("a", &[])]].concat();
        assert_eq!(
            drawn(&images),
            ["* x", "| * y", "| | * z", "|_|/", "| | * w", "| * | b", "|/ /", "| * c", "|/", "* a"]
        );
    }

    #[test]
    fn an_image_without_a_parent_frees_its_column() {
        let images: [(&str, &[&str]); 5] =
            [("x", &["a"]), ("y", &["b"]), ("a", &[]), ("z", &["b"]), ("b", &[])];
        assert_eq!(drawn(&images), ["* x", "| * y", "* | a", " /", "| * z", "|/", "* b"]);
    }
}
