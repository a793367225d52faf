//! Evaluates the expressions that make a message to its text, with `…` for each part that only a run knows.

use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

use syn::visit::{self, Visit};
use syn::{Expr, Lit, Pat, Stmt};

use super::source::{Call, Code};

/// A part of a text that only a run knows.
pub const HOLE: &str = "…";

/// How many functions a text is followed through.
const DEPTH: usize = 6;

/// A text with more variants is not followed.
const MOST: usize = 60;

/// A text with more variants than this has a part that is better left to the run.
const VARIANTS: usize = 12;

/// Why an expression has no text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unread {
    /// It is a parameter of this function.
    Parameter(usize),
    /// The search cannot follow it.
    Expression(String),
}

type Texts = Result<Vec<String>, Unread>;

/// Where an expression stands, and what the parameters are there.
#[derive(Clone)]
pub struct Scope {
    pub file: usize,
    pub within: Option<usize>,
    given: Rc<Vec<(String, Expr, Rc<Scope>)>>,
    /// Through how many functions and bindings it was reached.
    depth: usize,
}

impl Scope {
    pub fn new(file: usize, within: Option<usize>) -> Self {
        Self { file, within, given: Rc::default(), depth: 0 }
    }

    fn deeper(&self) -> Self {
        Self { depth: self.depth + 1, ..self.clone() }
    }
}

pub struct Reader<'a> {
    pub code: &'a Code,
    /// The functions whose parameters a text contains.
    pub wanted: std::cell::RefCell<BTreeSet<usize>>,
    lets: std::cell::RefCell<HashMap<usize, Rc<Lets>>>,
}

/// Says whether a text is a phrase and not just a word, a name or a number.
pub fn is_phrase(text: &str) -> bool {
    text.split_whitespace().filter(|word| word.chars().filter(|c| c.is_alphabetic()).count() > 1).count() > 2
}

/// Replaces the placeholders of a format string by what `each` returns for their names.
fn formatted(format: &str, mut each: impl FnMut(Option<&str>, bool) -> Result<Vec<String>, Unread>) -> Texts {
    let mut texts = vec![String::new()];
    let mut rest = format;
    while let Some(at) = rest.find(['{', '}']) {
        let (before, from) = rest.split_at(at);
        for text in &mut texts {
            text.push_str(before);
        }
        if from.starts_with("{{") || from.starts_with("}}") {
            for text in &mut texts {
                text.push_str(&from[..1]);
            }
            rest = &from[2..];
            continue;
        }
        let end = from.find('}').ok_or_else(|| Unread::Expression(format.to_owned()))?;
        let (name, how) = from[1..end].split_once(':').unwrap_or((&from[1..end], ""));
        let parts = each((!name.trim().is_empty()).then_some(name.trim()), how.contains('?'))?;
        texts = texts.iter().flat_map(|text| parts.iter().map(move |part| format!("{text}{part}"))).collect();
        rest = &from[end + 1..];
    }
    for text in &mut texts {
        text.push_str(rest);
    }
    Ok(texts)
}

/// Says whether an expression is not a text: `None`, `Ok(None)` or `Err(…)`.
fn is_none(leaf: &Expr) -> bool {
    match leaf {
        Expr::Path(path) => path.path.is_ident("None"),
        Expr::Call(call) => match &*call.func {
            Expr::Path(path) if path.path.is_ident("Ok") => call.args.iter().all(is_none),
            Expr::Path(path) => path.path.is_ident("Err"),
            _ => false,
        },
        _ => false,
    }
}

/// The expressions that a block or a branch can come to.
pub fn leaves(expr: &Expr, found: &mut Vec<Expr>) {
    let block = |block: &syn::Block, found: &mut Vec<Expr>| {
        if let Some(Stmt::Expr(last, None)) = block.stmts.last() {
            leaves(last, found);
        }
    };
    match expr {
        Expr::Block(inner) => block(&inner.block, found),
        Expr::If(branch) => {
            block(&branch.then_branch, found);
            if let Some((_, other)) = &branch.else_branch {
                leaves(other, found);
            }
        }
        Expr::Match(choice) => choice.arms.iter().for_each(|arm| leaves(&arm.body, found)),
        Expr::Paren(inner) => leaves(&inner.expr, found),
        Expr::Group(inner) => leaves(&inner.expr, found),
        Expr::Reference(inner) => leaves(&inner.expr, found),
        Expr::Return(_) | Expr::Continue(_) | Expr::Break(_) => {}
        Expr::Macro(call) if call.mac.path.is_ident("unreachable") || call.mac.path.is_ident("panic") => {}
        other => found.push(other.clone()),
    }
}

/// A binding of a local name.
struct Let {
    name: String,
    /// Where the statement ends: a binding does not see itself.
    end: (usize, usize),
    value: Rc<Expr>,
    /// Which part of the value it is, if the pattern is a tuple.
    part: Option<usize>,
}

/// Collects the bindings of a function.
#[derive(Default)]
struct Lets(Vec<Let>);

impl Visit<'_> for Lets {
    fn visit_local(&mut self, local: &syn::Local) {
        if let Some(init) = &local.init {
            let end = syn::spanned::Spanned::span(local).end();
            let (end, value) = ((end.line, end.column), Rc::new((*init.expr).clone()));
            let pattern = match &local.pat {
                Pat::Type(typed) => &*typed.pat,
                other => other,
            };
            let mut add = |pattern: &Pat, part| {
                if let Pat::Ident(ident) = pattern {
                    self.0.push(Let { name: ident.ident.to_string(), end, value: Rc::clone(&value), part });
                }
            };
            match pattern {
                Pat::TupleStruct(wrapped) if wrapped.elems.len() == 1 => add(&wrapped.elems[0], None),
                Pat::Tuple(tuple) => {
                    tuple.elems.iter().enumerate().for_each(|(part, inner)| add(inner, Some(part)));
                }
                other => add(other, None),
            }
        }
        visit::visit_local(self, local);
    }

    fn visit_expr_match(&mut self, choice: &syn::ExprMatch) {
        for arm in &choice.arms {
            self.unwrapped(&arm.pat, &choice.expr);
        }
        visit::visit_expr_match(self, choice);
    }

    fn visit_expr_let(&mut self, binding: &syn::ExprLet) {
        self.unwrapped(&binding.pat, &binding.expr);
        visit::visit_expr_let(self, binding);
    }
}

impl Lets {
    /// Adds the name in `Some(name)`, which a match or an `if let` binds.
    fn unwrapped(&mut self, pattern: &Pat, value: &Expr) {
        if let Pat::TupleStruct(wrapped) = pattern
            && wrapped.path.is_ident("Some")
            && let [Pat::Ident(name)] = wrapped.elems.iter().collect::<Vec<_>>().as_slice()
        {
            let end = syn::spanned::Spanned::span(pattern).end();
            let (end, value) = ((end.line, end.column), Rc::new(value.clone()));
            self.0.push(Let { name: name.ident.to_string(), end, value, part: None });
        }
    }
}

impl<'a> Reader<'a> {
    pub fn new(code: &'a Code) -> Self {
        Self { code, wanted: std::cell::RefCell::default(), lets: std::cell::RefCell::default() }
    }

    /// Returns every text that an expression can have. Each part that cannot be read is an error.
    pub fn texts(&self, expr: &Expr, scope: &Scope) -> Texts {
        let texts = self.texts_of(expr, scope)?;
        if texts.len() > MOST {
            return Err(Unread::Expression("too many variants".to_owned()));
        }
        Ok(texts)
    }

    fn texts_of(&self, expr: &Expr, scope: &Scope) -> Texts {
        if scope.depth > DEPTH {
            return Err(Unread::Expression("too many calls".to_owned()));
        }
        let unread = || Unread::Expression(quote::quote!(#expr).to_string());
        match expr {
            Expr::Lit(literal) => match &literal.lit {
                Lit::Str(text) => Ok(vec![text.value()]),
                _ => Err(unread()),
            },
            Expr::Macro(call)
                if call.mac.path.is_ident("format") || call.mac.path.is_ident("format_args") =>
            {
                let parts = call
                    .mac
                    .parse_body_with(syn::punctuated::Punctuated::<Expr, syn::Token![,]>::parse_terminated)
                    .map_err(|_| unread())?;
                self.format(&parts.into_iter().collect::<Vec<_>>(), scope)
            }
            Expr::Block(_)
            | Expr::If(_)
            | Expr::Match(_)
            | Expr::Paren(_)
            | Expr::Group(_)
            | Expr::Reference(_) => {
                let mut found = Vec::new();
                leaves(expr, &mut found);
                let mut texts = Vec::new();
                for leaf in found.iter().filter(|leaf| !is_none(leaf)) {
                    texts.extend(self.texts(leaf, scope)?);
                }
                if texts.is_empty() { Err(unread()) } else { Ok(texts) }
            }
            Expr::MethodCall(call) => {
                let name = call.method.to_string();
                match name.as_str() {
                    "to_string" | "to_owned" | "into" | "clone" | "as_str" | "into_owned" | "as_ref"
                    | "as_deref" | "trim" => self.texts(&call.receiver, scope),
                    _ => {
                        self.called(&name, None, true, &call.args.iter().cloned().collect::<Vec<_>>(), scope)
                    }
                }
            }
            Expr::Call(call) => {
                let Expr::Path(path) = &*call.func else { return Err(unread()) };
                let parts: Vec<String> =
                    path.path.segments.iter().map(|part| part.ident.to_string()).collect();
                let arguments: Vec<Expr> = call.args.iter().cloned().collect();
                let name = parts.last().unwrap();
                if arguments.len() == 1
                    && (matches!(name.as_str(), "Some" | "Ok" | "Borrowed" | "Owned")
                        || parts.ends_with(&["String".to_owned(), "from".to_owned()]))
                {
                    return self.texts(&arguments[0], scope);
                }
                let of = (parts.len() > 1).then(|| parts[parts.len() - 2].clone());
                self.called(name, of.as_deref(), false, &arguments, scope)
            }
            Expr::Binary(sum) if matches!(sum.op, syn::BinOp::Add(_)) => {
                let (first, second) = (self.texts(&sum.left, scope)?, self.texts(&sum.right, scope)?);
                Ok(first.iter().flat_map(|a| second.iter().map(move |b| format!("{a}{b}"))).collect())
            }
            Expr::Path(path) => {
                let name = path.path.segments.last().unwrap().ident.to_string();
                if path.path.segments.len() == 1 && name.starts_with(char::is_lowercase) {
                    let start = syn::spanned::Spanned::span(path).start();
                    return self.named(&name, (start.line, start.column), scope, &unread());
                }
                match self.code.constants.get(&name).map(Vec::as_slice) {
                    Some([value]) => self.texts(value, scope),
                    _ => Err(unread()),
                }
            }
            Expr::Try(inner) => self.texts(&inner.expr, scope),
            _ => Err(unread()),
        }
    }

    /// Returns the texts of a local name: a parameter or a binding.
    fn named(&self, name: &str, at: (usize, usize), scope: &Scope, unread: &Unread) -> Texts {
        if let Some((_, expr, outer)) = scope.given.iter().find(|(given, ..)| given == name) {
            return self.texts(expr, outer);
        }
        let mut within = scope.within;
        while let Some(number) = within {
            let function = &self.code.functions[number];
            let lets = Rc::clone(self.lets.borrow_mut().entry(number).or_insert_with(|| {
                let mut lets = Lets::default();
                lets.visit_block(&function.body);
                Rc::new(lets)
            }));
            let found =
                lets.0.iter().filter(|one| one.name == name && one.end <= at).max_by_key(|one| one.end);
            match found.map(|one| (&one.value, one.part)) {
                Some((value, None)) => return self.texts(value, &scope.deeper()),
                Some((value, Some(part))) => {
                    let (mut found, mut texts) = (Vec::new(), Vec::new());
                    leaves(value, &mut found);
                    for leaf in &found {
                        let Expr::Tuple(tuple) = leaf else { return Err(unread.clone()) };
                        texts.extend(self.texts(&tuple.elems[part], &scope.deeper())?);
                    }
                    return Ok(texts);
                }
                None => {}
            }
            if let Some((_, of)) = function.parameters.iter().find(|(parameter, _)| parameter == name) {
                // Closures seldom name types.
                let is_text = of.is_empty()
                    || ["str", "String", "Cow<", "Display"].iter().any(|text| of.contains(text));
                return Err(if is_text { Unread::Parameter(number) } else { unread.clone() });
            }
            within = function.outer;
        }
        Err(unread.clone())
    }

    /// Returns the texts of a `format!`, with `…` where a placeholder is not a phrase.
    pub fn format(&self, parts: &[Expr], scope: &Scope) -> Texts {
        let Some(Expr::Lit(syn::ExprLit { lit: Lit::Str(format), .. })) = parts.first() else {
            return Err(Unread::Expression("a format that is not a literal".to_owned()));
        };
        let mut next = 1;
        let start = format.span().start();
        let at = (start.line, start.column);
        let texts = formatted(&format.value(), |name, is_quoted| {
            let value = match name {
                None => {
                    next += 1;
                    parts.get(next - 1).map(|part| self.texts(part, scope))
                }
                Some(name) => {
                    let given = parts.iter().find_map(|part| match part {
                        Expr::Assign(assign) => match &*assign.left {
                            Expr::Path(path) if path.path.is_ident(name) => Some(&*assign.right),
                            _ => None,
                        },
                        _ => None,
                    });
                    Some(match given {
                        Some(value) => self.texts(value, scope),
                        None if name.starts_with(char::is_uppercase) => {
                            Err(Unread::Expression(String::new()))
                        }
                        None => self.named(name, at, scope, &Unread::Expression(name.to_owned())),
                    })
                }
            };
            Ok(match value {
                // What is quoted is a name.
                _ if is_quoted => vec![HOLE.to_owned()],
                Some(Err(Unread::Parameter(function))) => {
                    self.wanted.borrow_mut().insert(function);
                    vec![HOLE.to_owned()]
                }
                Some(Ok(texts)) if texts.len() <= VARIANTS && texts.iter().any(|text| is_phrase(text)) => {
                    let shown = |text: &String| if is_phrase(text) { text.clone() } else { HOLE.to_owned() };
                    texts.iter().map(shown).collect()
                }
                _ => vec![HOLE.to_owned()],
            })
        })?;
        Ok(texts.into_iter().collect::<BTreeSet<_>>().into_iter().collect())
    }

    /// The functions that a call with `count` arguments can mean.
    fn meant(&self, name: &str, of: Option<&str>, is_method: bool, count: usize, file: usize) -> Vec<usize> {
        let all = self.code.by_name.get(name).map_or(&[][..], Vec::as_slice);
        let text = &self.code.files[file].text;
        let mut fits: Vec<usize> = all.to_vec();
        fits.retain(|&at| {
            let function = &self.code.functions[at];
            let place = &self.code.files[function.file].name;
            let is_below =
                self.code.files[file].name.starts_with(&format!("{}/", place.trim_end_matches(".rs")));
            let is_named = match of {
                Some("Self" | "self" | "super" | "crate") => true,
                Some(of) if of.starts_with(char::is_uppercase) => function.of.as_deref() == Some(of),
                Some(module) => place.split(['/', '.']).any(|part| part == module),
                // A function of another file is imported by its module.
                None if !is_method && function.file != file => {
                    let module = place.trim_end_matches(".rs").rsplit('/').next().unwrap_or_default();
                    text.contains(&format!("{module}::")) || is_below
                }
                None => true,
            };
            let is_visible = !function.is_private || function.file == file || is_below;
            let is_called_so = if is_method { function.has_self } else { !function.has_self || of.is_some() };
            is_named
                && is_visible
                && is_called_so
                && function.parameters.len() == count
                && (function.outer.is_none() || function.file == file)
        });
        let here: Vec<usize> =
            fits.iter().copied().filter(|&at| self.code.functions[at].file == file).collect();
        if here.is_empty() { fits } else { here }
    }

    /// Returns the texts that a call returns.
    fn called(
        &self,
        name: &str,
        of: Option<&str>,
        is_method: bool,
        arguments: &[Expr],
        scope: &Scope,
    ) -> Texts {
        let unread = Unread::Expression(format!("{name}(…)"));
        let &[at] = self.meant(name, of, is_method, arguments.len(), scope.file).as_slice() else {
            return Err(unread);
        };
        let function = &self.code.functions[at];
        let returns_text = function.outer.is_some()
            || ["String", "&str", "&'staticstr", "Cow<"].iter().any(|text| function.returns.contains(text));
        if !returns_text {
            return Err(unread);
        }
        self.returned(at, &self.inner(at, arguments, scope))
    }

    /// The texts that the functions of a name return, in the module of a file and in the modules around it.
    pub fn made_by(&self, name: &str, file: usize) -> Vec<String> {
        let file = self.code.files[file].name.trim_end_matches(".rs");
        let parent = file.rsplit_once('/').map_or(file, |(parent, _)| parent);
        let family = |at: &usize| {
            let place = &self.code.files[self.code.functions[*at].file].name;
            place.starts_with(&format!("{file}/"))
                || (place.starts_with(&format!("{parent}/")) && parent != "src/ops")
        };
        let all = self.code.by_name.get(name).map_or(&[][..], Vec::as_slice);
        let mut near: Vec<usize> = all.iter().copied().filter(family).collect();
        if near.is_empty() {
            // Files of one room pass texts on without a module of their own between them.
            let room: String = file.split('/').take(2).flat_map(|part| [part, "/"]).collect();
            let in_room = |at: &usize| self.code.files[self.code.functions[*at].file].name.starts_with(&room);
            near = all.iter().copied().filter(in_room).collect();
        }
        near.into_iter()
            .filter_map(|at| self.returned(at, &self.inner(at, &[], &Scope::new(0, None))).ok())
            .flatten()
            .collect()
    }

    /// The texts that a function returns.
    fn returned(&self, at: usize, inner: &Scope) -> Texts {
        let function = &self.code.functions[at];
        let mut found = Vec::new();
        if let Some(Stmt::Expr(last, None)) = function.body.stmts.last() {
            leaves(last, &mut found);
        }
        Returns(&mut found).visit_block(&function.body);
        let mut texts = Vec::new();
        for leaf in found.iter().filter(|leaf| !is_none(leaf)) {
            texts.extend(self.texts(leaf, inner)?);
        }
        if texts.is_empty() { Err(Unread::Expression(function.name.clone())) } else { Ok(texts) }
    }

    /// The scope inside of a function that is called with these arguments.
    pub fn inner(&self, function: usize, arguments: &[Expr], scope: &Scope) -> Scope {
        let outer = Rc::new(scope.clone());
        let parameters = &self.code.functions[function].parameters;
        let given = parameters
            .iter()
            .zip(arguments)
            .map(|((name, _), value)| (name.clone(), value.clone(), Rc::clone(&outer)))
            .collect::<Vec<_>>()
            .into();
        Scope {
            file: self.code.functions[function].file,
            within: Some(function),
            given,
            depth: scope.depth + 1,
        }
    }

    /// The argument that a parameter stands for, if `expr` names or wraps a parameter.
    pub fn given(expr: &Expr, scope: &Scope) -> Option<(Expr, Scope)> {
        let name = match expr {
            Expr::Path(path) => path.path.get_ident()?.to_string(),
            Expr::Call(call) => return Self::given(call.args.first()?, scope),
            _ => return None,
        };
        let (_, value, outer) = scope.given.iter().find(|(given, ..)| *given == name)?;
        Some((value.clone(), (**outer).clone()))
    }

    /// The functions that a call can be one of.
    pub fn called_by(&self, call: &Call) -> Vec<usize> {
        let of = (call.path.len() > 1).then(|| call.path[call.path.len() - 2].as_str());
        let of = if of == Some("Self") { call.of.as_deref() } else { of };
        self.meant(call.path.last().unwrap(), of, call.is_method, call.arguments.len(), call.file)
    }

    /// The calls of a function.
    pub fn callers(&self, function: usize) -> Vec<&'a Call> {
        let name = &self.code.functions[function].name;
        let calls = self.code.calls_of.get(name).map_or(&[][..], Vec::as_slice);
        let code: &'a Code = self.code;
        calls
            .iter()
            .map(|&at| &code.calls[at])
            .filter(|call| self.called_by(call).contains(&function))
            .collect()
    }
}

/// Collects what a function returns early.
struct Returns<'a>(&'a mut Vec<Expr>);

impl Visit<'_> for Returns<'_> {
    fn visit_expr_return(&mut self, early: &syn::ExprReturn) {
        if let Some(value) = &early.expr {
            leaves(value, self.0);
        }
    }

    fn visit_expr_closure(&mut self, _: &syn::ExprClosure) {}
}
