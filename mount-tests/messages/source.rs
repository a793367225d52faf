//! The syntax trees of `src`, and what the search for messages has to know of them: functions, calls and constants.

use std::collections::HashMap;
use std::fs;

use crate::checkout::{files, top};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Attribute, Block, Expr, FnArg, ImplItem, Item, Pat, ReturnType, Signature, Type};

/// A file of `src`.
pub struct Source {
    /// Its path below the package, such as `src/store.rs`.
    pub name: String,
    pub text: String,
    tree: syn::File,
}

/// A function, a method, or a closure with a name.
pub struct Function {
    pub file: usize,
    pub name: String,
    /// The type of the `impl` block that it stands in.
    pub of: Option<String>,
    /// Names and types of the parameters, without `self`.
    pub parameters: Vec<(String, String)>,
    pub has_self: bool,
    /// Only its own module and the modules below can call it.
    pub is_private: bool,
    pub returns: String,
    pub body: Block,
    /// The function around a closure.
    pub outer: Option<usize>,
}

/// A call of a function or of a method.
pub struct Call {
    pub file: usize,
    /// The function in which the call stands.
    pub within: Option<usize>,
    /// The type of the `impl` block in which the call stands.
    pub of: Option<String>,
    /// The path that is called: `Error::new` has two parts, a method one.
    pub path: Vec<String>,
    pub is_method: bool,
    /// The receiver of a method is not one of them.
    pub arguments: Vec<Expr>,
    pub receiver: Option<Expr>,
    pub line: usize,
    pub column: usize,
}

/// A macro that prints.
pub struct Print {
    pub file: usize,
    pub within: Option<usize>,
    pub arguments: Vec<Expr>,
    pub line: usize,
}

/// A format string that stands alone: that of an `#[error("…")]`, or of a line of the log.
pub struct Attributed {
    pub file: usize,
    /// The type of an error.
    pub of: String,
    pub text: String,
    pub line: usize,
}

/// All of `src` but its tests.
pub struct Code {
    pub files: Vec<Source>,
    pub functions: Vec<Function>,
    pub by_name: HashMap<String, Vec<usize>>,
    pub calls: Vec<Call>,
    pub calls_of: HashMap<String, Vec<usize>>,
    pub prints: Vec<Print>,
    pub shown: Vec<Print>,
    pub logged: Vec<Attributed>,
    pub attributed: Vec<Attributed>,
    pub constants: HashMap<String, Vec<Expr>>,
}

/// Says whether only tests compile what has these attributes.
fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("test")
            || (attribute.path().is_ident("cfg")
                && attribute.meta.require_list().is_ok_and(|list| {
                    let words = list.tokens.to_string();
                    words.contains("test") && !words.contains("not")
                }))
    })
}

/// Says whether a file holds only tests: its parent names it in a `#[cfg(test)] mod`.
fn is_test_file(name: &str) -> bool {
    let stem = name.rsplit('/').next().unwrap_or(name).trim_end_matches(".rs");
    matches!(stem, "tests" | "robustness" | "interleavings" | "failing" | "model")
        || stem.ends_with("_tests")
        || name.contains("/interleavings/")
}

impl Code {
    /// Reads all files of `src`.
    pub fn read() -> Self {
        let mut names: Vec<String> =
            files("src", "rs").into_iter().map(|path| path.to_str().unwrap().to_owned()).collect();
        names.sort();
        assert!(names.len() > 200, "only {} files are found in src", names.len());
        names.retain(|name| !is_test_file(name));
        Self::of(names.into_iter().map(|name| {
            let text = fs::read_to_string(top().join(&name)).unwrap();
            (name, text)
        }))
    }

    /// Makes it of files, given by name and text.
    pub fn of(texts: impl IntoIterator<Item = (String, String)>) -> Self {
        let files: Vec<Source> = texts
            .into_iter()
            .map(|(name, text)| {
                let tree = syn::parse_file(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
                Source { name, text, tree }
            })
            .collect();
        let mut walk = Walk::default();
        for (at, file) in files.iter().enumerate() {
            walk.file = at;
            if !is_for_tests(&file.tree.attrs) {
                walk.visit_file(&file.tree);
            }
        }
        let Walk { functions, calls, prints, shown, logged, attributed, constants, .. } = walk;
        let mut by_name: HashMap<String, Vec<usize>> = HashMap::new();
        for (at, function) in functions.iter().enumerate() {
            by_name.entry(function.name.clone()).or_default().push(at);
        }
        let mut calls_of: HashMap<String, Vec<usize>> = HashMap::new();
        for (at, call) in calls.iter().enumerate() {
            calls_of.entry(call.path.last().unwrap().clone()).or_default().push(at);
        }
        Self { files, functions, by_name, calls, calls_of, prints, shown, logged, attributed, constants }
    }

    /// Says whether a function, a type or a library has this name.
    pub fn has(&self, name: &str) -> bool {
        let is_type = |kind: &str| {
            let item = format!("{kind} {name} ");
            self.files.iter().any(|file| file.text.contains(&item))
        };
        let is_path = || self.files.iter().any(|file| file.text.contains(&format!("{name}::")));
        self.by_name.contains_key(name) || is_type("enum") || is_type("struct") || is_path()
    }

    /// The place of a line, as compilers write it.
    pub fn place(&self, file: usize, line: usize) -> String {
        format!("{}:{line}", self.files[file].name)
    }
}

#[derive(Default)]
struct Walk {
    file: usize,
    within: Option<usize>,
    of: Option<String>,
    functions: Vec<Function>,
    calls: Vec<Call>,
    prints: Vec<Print>,
    shown: Vec<Print>,
    logged: Vec<Attributed>,
    attributed: Vec<Attributed>,
    constants: HashMap<String, Vec<Expr>>,
}

/// The tokens of a type or a path without spaces.
fn plain(tokens: &impl quote::ToTokens) -> String {
    tokens.to_token_stream().to_string().replace(' ', "")
}

/// The last name of a type, without its parameters: `Error` for `crate::error::Error`.
fn last_name(of: &Type) -> Option<String> {
    match of {
        Type::Path(path) => path.path.segments.last().map(|last| last.ident.to_string()),
        Type::Reference(inner) => last_name(&inner.elem),
        _ => None,
    }
}

fn is_private(visibility: &syn::Visibility) -> bool {
    matches!(visibility, syn::Visibility::Inherited)
}

fn name_of(pattern: &Pat) -> String {
    match pattern {
        Pat::Ident(ident) => ident.ident.to_string(),
        Pat::Type(typed) => name_of(&typed.pat),
        _ => String::new(),
    }
}

impl Walk {
    fn function(&mut self, signature: &Signature, body: &Block, is_private: bool) {
        let mut parameters = Vec::new();
        let mut has_self = false;
        for input in &signature.inputs {
            match input {
                FnArg::Receiver(_) => has_self = true,
                FnArg::Typed(typed) => parameters.push((name_of(&typed.pat), plain(&*typed.ty))),
            }
        }
        let returns = match &signature.output {
            ReturnType::Default => String::new(),
            ReturnType::Type(_, of) => plain(&**of),
        };
        self.functions.push(Function {
            file: self.file,
            name: signature.ident.to_string(),
            of: self.of.clone(),
            parameters,
            has_self,
            is_private,
            returns,
            body: body.clone(),
            outer: None,
        });
        let outer = self.within.replace(self.functions.len() - 1);
        visit::visit_block(self, body);
        self.within = outer;
    }

    fn attributes(&mut self, of: &str, attributes: &[Attribute]) {
        for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("error")) {
            if let Ok(text) = attribute.parse_args_with(|input: syn::parse::ParseStream<'_>| {
                let text: syn::LitStr = input.parse()?;
                input.parse::<proc_macro2::TokenStream>()?;
                Ok(text)
            }) {
                self.attributed.push(Attributed {
                    file: self.file,
                    of: of.to_owned(),
                    text: text.value(),
                    line: attribute.span().start().line,
                });
            }
        }
    }
}

impl<'ast> Visit<'ast> for Walk {
    fn visit_item(&mut self, item: &'ast Item) {
        let attributes = match item {
            Item::Mod(item) => &item.attrs,
            Item::Fn(item) => &item.attrs,
            Item::Impl(item) => &item.attrs,
            Item::Const(item) => {
                self.constants.entry(item.ident.to_string()).or_default().push((*item.expr).clone());
                &item.attrs
            }
            Item::Enum(item) => {
                for variant in &item.variants {
                    self.attributes(&item.ident.to_string(), &variant.attrs);
                }
                &item.attrs
            }
            Item::Struct(item) => {
                self.attributes(&item.ident.to_string(), &item.attrs);
                &item.attrs
            }
            _ => return visit::visit_item(self, item),
        };
        if is_for_tests(attributes) {
            return;
        }
        match item {
            Item::Fn(item) => self.function(&item.sig, &item.block, is_private(&item.vis)),
            Item::Impl(item) => {
                let outer = std::mem::replace(&mut self.of, last_name(&item.self_ty));
                for part in &item.items {
                    match part {
                        ImplItem::Fn(method) if !is_for_tests(&method.attrs) => {
                            let is_private = item.trait_.is_none() && is_private(&method.vis);
                            self.function(&method.sig, &method.block, is_private);
                        }
                        ImplItem::Const(item) => {
                            self.constants.entry(item.ident.to_string()).or_default().push(item.expr.clone());
                        }
                        _ => {}
                    }
                }
                self.of = outer;
            }
            _ => visit::visit_item(self, item),
        }
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        if let Some(body) = &item.default {
            self.function(&item.sig, body, false);
        }
    }

    fn visit_local(&mut self, local: &'ast syn::Local) {
        if let (Some(init), Pat::Ident(name)) = (&local.init, &local.pat)
            && let Expr::Closure(closure) = &*init.expr
        {
            let body = match &*closure.body {
                Expr::Block(block) => block.block.clone(),
                body => syn::parse_quote!({ #body }),
            };
            let typed = |pattern: &Pat| match pattern {
                Pat::Type(typed) => (name_of(&typed.pat), plain(&*typed.ty)),
                other => (name_of(other), String::new()),
            };
            self.functions.push(Function {
                file: self.file,
                name: name.ident.to_string(),
                of: None,
                parameters: closure.inputs.iter().map(typed).collect(),
                has_self: false,
                is_private: true,
                returns: String::new(),
                body,
                outer: self.within,
            });
            let outer = self.within.replace(self.functions.len() - 1);
            visit::visit_expr(self, &closure.body);
            self.within = outer;
            return;
        }
        visit::visit_local(self, local);
    }

    fn visit_expr_call(&mut self, call: &'ast syn::ExprCall) {
        if let Expr::Path(path) = &*call.func {
            let start = call.span().start();
            self.calls.push(Call {
                file: self.file,
                within: self.within,
                of: self.of.clone(),
                path: path.path.segments.iter().map(|segment| segment.ident.to_string()).collect(),
                is_method: false,
                arguments: call.args.iter().cloned().collect(),
                receiver: None,
                line: start.line,
                column: start.column,
            });
        }
        visit::visit_expr_call(self, call);
    }

    fn visit_expr_method_call(&mut self, call: &'ast syn::ExprMethodCall) {
        let start = call.method.span().start();
        self.calls.push(Call {
            file: self.file,
            within: self.within,
            of: self.of.clone(),
            path: vec![call.method.to_string()],
            is_method: true,
            arguments: call.args.iter().cloned().collect(),
            receiver: Some((*call.receiver).clone()),
            line: start.line,
            column: start.column,
        });
        visit::visit_expr_method_call(self, call);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        let parts = call
            .parse_body_with(syn::punctuated::Punctuated::<Expr, syn::Token![,]>::parse_terminated)
            .map(|parts| parts.into_iter().collect::<Vec<_>>())
            .unwrap_or_default();
        if call.path.is_ident("eprintln") || call.path.is_ident("eprint") {
            let line = call.span().start().line;
            self.prints.push(Print { file: self.file, within: self.within, arguments: parts.clone(), line });
        }
        if call.path.segments.last().is_some_and(|last| last.ident == "warn" || last.ident == "error") {
            let line = call.span().start().line;
            self.logged.extend(text_of_log(&call.tokens).map(|text| Attributed {
                file: self.file,
                of: String::new(),
                text,
                line,
            }));
        }
        // What `Display` makes of a type.
        let is_shown = self.within.is_some_and(|at| self.functions[at].name == "fmt");
        if call.path.is_ident("write") && is_shown && parts.len() > 1 {
            let (arguments, line) = (parts[1..].to_vec(), call.span().start().line);
            self.shown.push(Print { file: self.file, within: self.within, arguments, line });
        }
        for part in &parts {
            self.visit_expr(part);
        }
    }
}

/// The text of a line of the log: the first literal that is not the value of a field.
fn text_of_log(tokens: &proc_macro2::TokenStream) -> Option<String> {
    let mut is_value = false;
    for token in tokens.clone() {
        match token {
            proc_macro2::TokenTree::Literal(literal) if !is_value => {
                return syn::parse_str::<syn::LitStr>(&literal.to_string()).ok().map(|text| text.value());
            }
            proc_macro2::TokenTree::Punct(mark) => is_value = mark.as_char() == '=' || mark.as_char() == '%',
            _ => is_value = false,
        }
    }
    None
}
