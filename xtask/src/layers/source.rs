//! The modules of one crate, read from its files: what each defines, imports and names.

use crate::error::Error;
use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};
use quote::ToTokens;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};
use syn::{Attribute, Item, ItemUse, Lit, Meta, UseTree, Visibility};

/// A path as it is written, `crate::a::B`, and its line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mention {
    pub(super) segments: Vec<String>,
    pub(super) line: usize,
    /// Whether it can be nothing but the name of an item: a call, a macro, several segments, or an upper-case name.
    pub(super) certain: bool,
}

/// One name that a `use` brings in, or all names of a module.
#[derive(Debug, Clone)]
pub(super) struct Use {
    pub(super) segments: Vec<String>,
    pub(super) line: usize,
    /// The name here; `None` for `*` and for `as _`.
    pub(super) alias: Option<String>,
    pub(super) glob: bool,
    /// Whether it hands the name on: `pub use`, `pub(crate) use`.
    pub(super) public: bool,
}

/// A module; one inside a file has that file.
#[derive(Debug)]
pub(super) struct Module {
    pub(super) file: PathBuf,
    pub(super) parent: Option<usize>,
    pub(super) children: BTreeMap<String, usize>,
    pub(super) items: BTreeSet<String>,
    pub(super) uses: Vec<Use>,
    pub(super) mentions: Vec<Mention>,
}

/// All modules of a crate but those of tests. The first is the root.
#[derive(Debug, Default)]
pub(super) struct Source {
    pub(super) modules: Vec<Module>,
    /// `#[macro_export]`: these are named as if they were in the root.
    pub(super) macros: BTreeMap<String, usize>,
}

impl Source {
    /// Reads the crate whose root is the file `root`.
    ///
    /// # Errors
    /// A file that cannot be read or is no Rust.
    pub(super) fn read(root: &Path) -> Result<Self, Error> {
        let mut source = Self::default();
        let folder = root.parent().unwrap_or(root).to_owned();
        source.file(root, None, &folder)?;
        Ok(source)
    }

    /// Reads a module's file; `folder` is where the files of its children are.
    fn file(&mut self, path: &Path, parent: Option<usize>, folder: &Path) -> Result<usize, Error> {
        let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
        let parsed = syn::parse_file(&text).map_err(|source| Error::Parse {
            path: path.to_owned(),
            line: source.span().start().line,
            source,
        })?;
        self.module(path, parent, folder, parsed.items)
    }

    fn module(
        &mut self,
        file: &Path,
        parent: Option<usize>,
        folder: &Path,
        items: Vec<Item>,
    ) -> Result<usize, Error> {
        let this = self.modules.len();
        self.modules.push(Module {
            file: file.to_owned(),
            parent,
            children: BTreeMap::new(),
            items: BTreeSet::new(),
            uses: Vec::new(),
            mentions: Vec::new(),
        });
        for item in items {
            if is_test(attributes(&item)) {
                continue;
            }
            match item {
                Item::Use(item) => flatten(&item, &mut self.modules[this].uses),
                Item::Mod(item) => {
                    let name = item.ident.to_string();
                    let inner = folder.join(&name);
                    let child = if let Some((_, items)) = item.content {
                        self.module(file, Some(this), &inner, items)?
                    } else {
                        let path = child_file(file, folder, &name, &item.attrs);
                        let inner = match path.file_name() {
                            Some(file) if file == "mod.rs" => {
                                path.parent().unwrap_or(folder).to_owned()
                            }
                            _ => path.with_extension(""),
                        };
                        self.file(&path, Some(this), &inner)?
                    };
                    self.modules[this].children.insert(name, child);
                }
                item => {
                    if let Some(name) = defined(&item) {
                        if let Item::Macro(item) = &item
                            && item.attrs.iter().any(|a| a.path().is_ident("macro_export"))
                        {
                            self.macros.insert(name.clone(), this);
                        }
                        self.modules[this].items.insert(name);
                    }
                    let mut found = Mentions::default();
                    found.read(item.to_token_stream());
                    self.modules[this].mentions.extend(found.mentions);
                    self.modules[this].uses.extend(found.uses);
                }
            }
        }
        Ok(this)
    }
}

fn child_file(file: &Path, folder: &Path, name: &str, attributes: &[Attribute]) -> PathBuf {
    let named = attributes
        .iter()
        .find_map(|attribute| match &attribute.meta {
            Meta::NameValue(pair) if pair.path.is_ident("path") => match &pair.value {
                syn::Expr::Lit(literal) => match &literal.lit {
                    Lit::Str(path) => Some(path.value()),
                    _ => None,
                },
                _ => None,
            },
            _ => None,
        });
    if let Some(named) = named {
        return file.parent().unwrap_or(folder).join(named);
    }
    let plain = folder.join(format!("{name}.rs"));
    if plain.is_file() {
        plain
    } else {
        folder.join(name).join("mod.rs")
    }
}

/// Whether an item is there for tests only: `#[test]`, or `#[cfg(..)]` that demands `test`.
fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let Meta::List(list) = &attribute.meta else {
            return attribute.path().is_ident("test");
        };
        list.path.is_ident("cfg") && demands_test(list.tokens.clone())
    })
}

/// Whether a condition holds in tests only: `test`, or `all(..)` with it.
fn demands_test(condition: TokenStream) -> bool {
    let words: Vec<TokenTree> = condition.into_iter().collect();
    words.iter().enumerate().any(|(index, word)| match word {
        TokenTree::Ident(name) if name == "test" => true,
        TokenTree::Group(group) => {
            matches!(words[..index].last(), Some(TokenTree::Ident(name)) if name == "all")
                && demands_test(group.stream())
        }
        _ => false,
    })
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

fn defined(item: &Item) -> Option<String> {
    let name = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Macro(item) => item.ident.as_ref()?,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Union(item) => &item.ident,
        _ => return None,
    };
    Some(name.to_string())
}

/// The single names of a `use`.
fn flatten(item: &ItemUse, uses: &mut Vec<Use>) {
    fn branch(tree: &UseTree, before: &[String], public: bool, uses: &mut Vec<Use>) {
        let with = |name: &syn::Ident| {
            let mut segments = before.to_vec();
            // `use a::{self}` names `a`.
            if name != "self" || segments.is_empty() {
                segments.push(name.to_string());
            }
            segments
        };
        let mut push = |segments: Vec<String>, alias: Option<String>, line: usize, glob: bool| {
            uses.push(Use {
                segments,
                line,
                alias,
                glob,
                public,
            });
        };
        match tree {
            UseTree::Path(path) => branch(&path.tree, &with(&path.ident), public, uses),
            UseTree::Group(group) => {
                for tree in &group.items {
                    branch(tree, before, public, uses);
                }
            }
            UseTree::Name(name) => {
                let segments = with(&name.ident);
                let alias = segments.last().cloned();
                push(segments, alias, name.ident.span().start().line, false);
            }
            UseTree::Rename(rename) => {
                let alias = (rename.rename != "_").then(|| rename.rename.to_string());
                let line = rename.ident.span().start().line;
                push(with(&rename.ident), alias, line, false);
            }
            UseTree::Glob(glob) => {
                let line = glob.star_token.spans[0].start().line;
                push(before.to_vec(), None, line, true);
            }
        }
    }
    let public = !matches!(item.vis, Visibility::Inherited);
    branch(&item.tree, &[], public, uses);
}

/// What tokens name, those of macros included.
#[derive(Default)]
struct Mentions {
    mentions: Vec<Mention>,
    uses: Vec<Use>,
}

impl Mentions {
    fn read(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut at = 0;
        while at < tokens.len() {
            match &tokens[at] {
                TokenTree::Group(group) => self.read(group.stream()),
                TokenTree::Ident(name) if name == "use" => {
                    let end = tokens[at..]
                        .iter()
                        .position(|token| is_mark(token, ';'))
                        .map_or(tokens.len(), |length| at + length + 1);
                    let item: TokenStream = tokens[at..end].iter().cloned().collect();
                    // `impl Trait + use<'a>` is none.
                    if let Ok(item) = syn::parse2::<ItemUse>(item) {
                        flatten(&item, &mut self.uses);
                        at = end;
                        continue;
                    }
                }
                TokenTree::Ident(_) if !follows_dot(&tokens[..at]) => {
                    at = self.path(&tokens, at);
                    continue;
                }
                TokenTree::Literal(literal) => self.literal(literal),
                _ => {}
            }
            at += 1;
        }
    }

    /// Reads the path that starts `at` and returns where it ends.
    fn path(&mut self, tokens: &[TokenTree], mut at: usize) -> usize {
        let line = tokens[at].span().start().line;
        let mut segments = Vec::new();
        while let Some(TokenTree::Ident(name)) = tokens.get(at) {
            segments.push(name.to_string());
            at += 1;
            let goes_on = tokens.get(at).is_some_and(|token| is_mark(token, ':'))
                && tokens.get(at + 1).is_some_and(|token| is_mark(token, ':'));
            if !goes_on {
                break;
            }
            at += 2;
        }
        let called = match tokens.get(at) {
            Some(TokenTree::Group(group)) => is_call(group),
            Some(token) => is_mark(token, '!') || is_mark(token, '<'),
            None => false,
        };
        let upper = segments[0].starts_with(|letter: char| letter.is_uppercase());
        self.mentions.push(Mention {
            certain: called || upper || segments.len() > 1,
            segments,
            line,
        });
        at
    }

    /// A path in quotes, as attributes have them: `#[serde(with = "crate::a")]`.
    fn literal(&mut self, literal: &proc_macro2::Literal) {
        let text = literal.to_string();
        let text = text.trim_matches('"');
        if ["crate::", "super::", "self::"]
            .iter()
            .any(|start| text.starts_with(start))
            && let Ok(path) = syn::parse_str::<syn::Path>(text)
        {
            let segments = path
                .segments
                .iter()
                .map(|segment| segment.ident.to_string());
            self.mentions.push(Mention {
                segments: segments.collect(),
                line: literal.span().start().line,
                certain: true,
            });
        }
    }
}

fn is_mark(token: &TokenTree, mark: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == mark)
}

fn is_call(group: &Group) -> bool {
    group.delimiter() == Delimiter::Parenthesis
}

/// Whether what comes next is a field or a method; `..` is a range.
fn follows_dot(before: &[TokenTree]) -> bool {
    let dots = before.iter().rev().take_while(|token| is_mark(token, '.'));
    dots.count() == 1
}
