"""EBNF: the language of a translated grammar is that of the original."""

from __future__ import annotations

import re

import pytest
from llguidance import LLMatcher, LLTokenizer

from myllm_engine.structured.ebnf import ebnf_to_lark, is_ebnf


@pytest.fixture(scope="module")
def matches():
    """Return a function that says whether a grammar in EBNF matches a text, judged byte by byte."""
    tokenizer = LLTokenizer("byte")

    def run(grammar: str, text: str) -> bool:
        matcher = LLMatcher(tokenizer, ebnf_to_lark(grammar), log_level=0)
        assert not matcher.is_error(), matcher.get_error()
        data = list(text.encode())
        return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()

    return run


ARITHMETIC = """
# llama.cpp's example
root  ::= (expr "=" ws term "\\n")+
expr  ::= term ([-+*/] term)*
term  ::= ident | num | "(" ws expr ")" ws
ident ::= [a-z] [a-z0-9_]* ws
num   ::= [0-9]+ ws
ws    ::= [ \\t\\n]*
"""
JSON = r"""root ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}
"""
SQL = """root ::= select_statement
select_statement ::= "SELECT " column " from " table " where " condition
column ::= "col_1 " | "col_2 "
table ::= "table_1 "
   | "table_2 "
condition ::= column "= " number
number ::= "1 "
         | "2 "
"""


@pytest.mark.parametrize(
    ("grammar", "yes", "no"),
    [
        (ARITHMETIC, ["x=1\n", "(a+2)*b=c3\n", "a=b\nc=d\n"], ["a+=b\n", "a", "1=(2\n"]),
        (JSON, ['{"a b": [1, -2.5e3 , "x"],\n "c": {}}', "{ }\n"], ['{"a": [1 2]}', "[]", '{"a" "b"}']),
        (SQL, ["SELECT col_1  from table_2  where col_2 = 1 "], ["SELECT col_3 ", "SELECT col_1  from "]),
        ('root ::= "\\u0041\\x42" [\\u00e9-\\u00ef] "\\U0001F600"', ["ABê😀"], ["ABe😀", "AB\\u00e9"]),
        ("root ::= 'it\"s' | \"it's\"", ['it"s', "it's"], ["its"]),
        ('root ::= [^"\\\\/\\n]+ "\\n" | "\\\\"', ["ab-]^\n", "\\"], ['a"\n', "a/\n"]),
        (r"root ::= [a\-z]+ [\]^-]", ["a-z]", "--^", "a-"], ["b]", "a"]),
        ('root ::= a-b a_b aB\na-b ::= "1"\na_b ::= "2"\naB ::= "3"', ["123"], ["213"]),
        ('root ::= "" | "a" root', ["", "a", "aaa"], ["b"]),
        ('root ::= ("a" | ) ("b" | | "c")', ["", "a", "b", "ac"], ["cb"]),
        ('root ::= [0-9]{2} "a"{1,2} "b"{2,} .', ["12abb\n", "00aabbbx"], ["1abbx", "12aaabbx", "12abx"]),
        ("root ::= [a-z]+ [a-z0-9]+", ["ab", "a1"], ["a", "1a"]),
    ],
)
def test_the_language_is_the_same(matches, grammar, yes, no):
    assert [text for text in yes if not matches(grammar, text)] == []
    assert [text for text in no if matches(grammar, text)] == []


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        ('root ::= "a" x\n', "line 1: there is no rule `x`"),
        ('root ::= "a"\n\nx ::= ("b"\ny ::= "c"', "line 3: `(` is never closed"),
        ('root ::= "a")', "line 1: `)` closes nothing"),
        ('root ::= "a"\nroot ::= "b"', "line 2: the rule `root` is there already"),
        ('start ::= "a"', "it has no rule `root`"),
        ('# x\n\nroot ::= "a" & "b"', "line 3: '& \"b\"' is not EBNF"),
        ("root ::= * 'a'", "line 1: '*' follows nothing"),
        (r'root ::= "\q"', r"line 1: `\q` is no escape sequence"),
        (r'root ::= "\ud800"', "is no character"),
        ("root ::= []", "line 1: `[]` holds no character"),
        ('"a" root ::= "b"', "line 1: a rule begins with `name ::=`"),
    ],
)
def test_a_mistake_is_told_with_its_line(grammar, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        ebnf_to_lark(grammar)


def test_lark_is_left_alone():
    assert not is_ebnf('?start: "a" | b\nb: "::="')
    assert is_ebnf('\n# a comment\nroot ::= "a"')
    assert is_ebnf('root\n  ::= "a"')


def test_a_large_grammar_takes_no_long_time():
    """llguidance's converter is quadratic in the number of rules: this takes it minutes."""
    rules = "\n".join(f'r{i} ::= "a" r{i + 1} | [0-9]' for i in range(5000))
    assert ebnf_to_lark(f'root ::= r0\n{rules}\nr5000 ::= "b"').count("\n") == 5003
