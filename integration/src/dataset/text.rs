//! Text that compresses like source code: lines from templates, filled with names that repeat within a
//! directory and less often across the tree.

use crate::seed::{Rng, mix};

/// Names that a whole tree draws from.
const GLOBAL_NAMES: usize = 24_000;
/// Names that one directory prefers.
const LOCAL_NAMES: usize = 160;
/// Share of names that come from the directory's own.
const LOCAL_SHARE: f64 = 0.8;

const SYLLABLES: &[&str] = &[
    "ad", "al", "an", "ar", "at", "ba", "be", "block", "buf", "ca", "chan", "co", "con", "de", "dex", "di",
    "el", "en", "er", "ex", "fa", "field", "fi", "for", "ge", "ha", "head", "id", "im", "in", "io", "it",
    "key", "la", "len", "li", "lo", "ma", "me", "mo", "na", "ne", "node", "no", "of", "on", "or", "pa",
    "page", "pe", "po", "pre", "qu", "ra", "re", "ri", "ro", "sa", "se", "si", "so", "st", "ta", "te", "ti",
    "to", "tra", "tu", "un", "ur", "va", "ver", "vi", "wa", "wi", "ze",
];

const WORDS: &[&str] = &[
    "the",
    "of",
    "and",
    "a",
    "to",
    "in",
    "is",
    "that",
    "it",
    "for",
    "when",
    "with",
    "this",
    "from",
    "must",
    "be",
    "not",
    "are",
    "on",
    "by",
    "an",
    "caller",
    "returns",
    "lock",
    "held",
    "before",
    "after",
    "if",
    "each",
    "entry",
    "value",
    "pointer",
    "error",
    "buffer",
    "list",
    "state",
    "queue",
    "device",
    "page",
    "request",
    "may",
    "only",
    "once",
    "called",
    "set",
    "used",
    "see",
    "number",
    "bytes",
    "whether",
    "because",
    "otherwise",
    "so",
];

/// `@` is a name, `#` a number, `~` a sentence of comment.
const TEMPLATES: &[&str] = &[
    "let @ = @.@(@);",
    "let mut @ = @::@(#);",
    "if @ < @ {",
    "if (@->@ == @)",
    "return @(@, @);",
    "return -E@;",
    "@->@ = @;",
    "@(&@->@, @, #);",
    "static int @(struct @ *@, int @)",
    "#define @ #",
    "#include <@/@.h>",
    "pub fn @(&self, @: &@) -> Result<@, @> {",
    "for @ in @.@() {",
    "}",
    "}",
    "} else {",
    "",
    "",
    "// ~",
    "/* ~ */",
    " * ~",
    "match @ {",
    "@::@ => @(@)?,",
    "self.@.@(@);",
    "struct @ {",
    "@: @,",
    "unsigned long @;",
    "case @: return #;",
    "break;",
    "assert_eq!(@, #);",
    "{ \"@\": \"@\", \"@\": # },",
    "import { @ } from './@';",
    "const @ = await @(@, { @: # });",
    "def @(self, @, @=None):",
    "raise @(\"~\")",
    "<@ @=\"@\">@</@>",
    "@: [@, @]",
    "dev_err(@, \"~: %d\\n\", @);",
];

/// The names that files are made of; shared by all threads.
#[derive(Debug)]
pub(super) struct Vocabulary {
    names: Vec<String>,
}

impl Vocabulary {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = Rng::part(seed, 0x0076_6f63);
        let names = (0..GLOBAL_NAMES)
            .map(|_| {
                let mut name = String::new();
                for part in 0..1 + rng.index(4) {
                    if part > 0 && rng.chance(0.4) {
                        name.push('_');
                    }
                    name.push_str(SYLLABLES[rng.index(SYLLABLES.len())]);
                }
                name
            })
            .collect();
        Self { names }
    }

    /// A name for a file or directory.
    pub(super) fn name(&self, rng: &mut Rng) -> &str {
        &self.names[rng.index(self.names.len())]
    }

    /// Appends text to `out` until it is `len` long. `place` decides which names are common in it.
    pub(super) fn write_text(&self, out: &mut Vec<u8>, len: usize, place: u64, rng: &mut Rng) {
        let mut depth = 0usize;
        while out.len() < len {
            let template = TEMPLATES[zipf(rng, TEMPLATES.len())];
            if template.starts_with('}') {
                depth = depth.saturating_sub(1);
            }
            out.extend(std::iter::repeat_n(b' ', 4 * depth));
            for byte in template.bytes() {
                match byte {
                    b'@' => out.extend_from_slice(self.pick(place, rng).as_bytes()),
                    b'#' => push_number(out, rng),
                    b'~' => {
                        for _ in 0..4 + rng.index(9) {
                            out.extend_from_slice(WORDS[zipf(rng, WORDS.len())].as_bytes());
                            out.push(b' ');
                        }
                        out.extend_from_slice(self.pick(place, rng).as_bytes());
                    }
                    other => out.push(other),
                }
            }
            if template.ends_with('{') {
                depth = (depth + 1) % 6;
            }
            out.push(b'\n');
        }
        out.truncate(len);
    }

    fn pick(&self, place: u64, rng: &mut Rng) -> &str {
        if rng.chance(LOCAL_SHARE) {
            let local = zipf(rng, LOCAL_NAMES) as u64;
            let global = mix(place ^ local.wrapping_mul(0x9e37_79b9)) % GLOBAL_NAMES as u64;
            &self.names[global as usize]
        } else {
            &self.names[rng.index(GLOBAL_NAMES)]
        }
    }
}

/// An index below `len` whose frequency falls about as one over its rank.
fn zipf(rng: &mut Rng, len: usize) -> usize {
    let at = ((len + 1) as f64).powf(rng.unit()) - 1.0;
    (at as usize).min(len - 1)
}

fn push_number(out: &mut Vec<u8>, rng: &mut Rng) {
    let bits = rng.bits();
    let number = match bits % 4 {
        0 | 1 => bits >> 61,
        2 => bits >> 56,
        _ => bits >> 44,
    };
    if bits.is_multiple_of(16) {
        out.extend_from_slice(format!("0x{number:x}").as_bytes());
    } else {
        out.extend_from_slice(number.to_string().as_bytes());
    }
}
