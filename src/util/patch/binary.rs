//! `GIT binary patch`: the whole of both sides, compressed, as text.

use sha1::{Digest as _, Sha1};

/// Bytes on a line.
const LINE: usize = 52;

/// Git's digits of base 85.
const DIGITS: &[u8; 85] =
    b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~";

/// How hard is tried to make it small: what git does.
const LEVEL: u8 = 6;

/// The name that git gives to a file's content. A binary patch is refused without it.
pub(super) fn id(bytes: &[u8]) -> String {
    let mut hash = Sha1::new();
    hash.update(format!("blob {}\0", bytes.len()));
    hash.update(bytes);
    data_encoding::HEXLOWER.encode(&hash.finalize())
}

/// What stands for the content of a file that is not there.
pub(super) fn no_id() -> String {
    "0".repeat(40)
}

/// Writes what leads from one content to the other, and back.
pub(super) fn write(before: &[u8], after: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b"GIT binary patch\n");
    for bytes in [after, before] {
        out.extend_from_slice(format!("literal {}\n", bytes.len()).as_bytes());
        for line in miniz_oxide::deflate::compress_to_vec_zlib(bytes, LEVEL).chunks(LINE) {
            let length = line.len() as u8;
            out.push(if length <= 26 { b'A' + length - 1 } else { b'a' + length - 27 });
            for word in line.chunks(4) {
                let mut four = [0; 4];
                four[..word.len()].copy_from_slice(word);
                let mut number = u32::from_be_bytes(four);
                let mut digits = [0; 5];
                for digit in digits.iter_mut().rev() {
                    *digit = DIGITS[(number % 85) as usize];
                    number /= 85;
                }
                out.extend_from_slice(&digits);
            }
            out.push(b'\n');
        }
        out.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_those_of_git() {
        // `git hash-object`.
        assert_eq!(id(b""), "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
        assert_eq!(id(b"what is up, doc?"), "bd9dbf5aae1a3862dd1526723246b20206e5fc37");
        assert_eq!(no_id().len(), 40);
    }

    #[test]
    fn an_empty_input_is_compressed_too() {
        let mut out = Vec::new();
        write(b"", b"", &mut out);
        // Eight bytes, as `H` says. The second one tells how hard was tried, and git's says something else there.
        let nothing = "literal 0\nHc$@<O00001\n\n";
        assert_eq!(String::from_utf8(out).unwrap(), format!("GIT binary patch\n{nothing}{nothing}"));
    }
}
