"""Files are read from inside a source and from nowhere else, and told of in one sentence."""

import os
import zipfile

import pytest

from hmtl_jax import errors
from hmtl_jax.data.readers import tree as tree_module
from hmtl_jax.data.readers.tree import Tree


@pytest.fixture(params=["folder", "zip"])
def tree_of(request, tmp_path):
    """Makes a source of these texts by name, as a folder or as a zip."""

    def made(**texts):
        source = tmp_path / ("source.zip" if request.param == "zip" else "source")
        names = {name.replace("__", "/"): text for name, text in texts.items()}
        if request.param == "zip":
            with zipfile.ZipFile(source, "w") as file:
                for name, text in names.items():
                    file.writestr(name, text)
        else:
            for name, text in names.items():
                (source / name).parent.mkdir(parents=True, exist_ok=True)
                mode = "wb" if isinstance(text, bytes) else "w"
                with open(source / name, mode) as file:
                    file.write(text)
        return Tree(source)

    return made


@pytest.mark.parametrize("name", ["../secret.png", "a/../../secret.png", "/etc/passwd"])
def test_a_name_that_leads_out_of_the_source_is_refused(tree_of, tmp_path, name):
    (tmp_path / "secret.png").write_text("secret")
    tree = tree_of(**{"a__b.png": "b"})
    for call in (tree.read, tree.exists, tree.find):
        with pytest.raises(errors.UserError, match="leads out of"):
            call(name)


def test_what_systems_leave_beside_files_is_no_part_of_a_source(tree_of):
    junk = ["a___.x.csv", "a__.DS_Store", "a__Thumbs.db", "__MACOSX__a__1.png"]
    tree = tree_of(**{"a__1.png": "1", "a__._1.png": "2", **dict.fromkeys(junk, "3")})
    assert "1.png" in tree.list("a")
    assert not [n for n in tree.list("a") if n.startswith("._") or n in (".DS_Store", "Thumbs.db")]
    assert "__MACOSX" not in tree.list("")


def test_a_name_is_found_as_the_file_has_it(tree_of):
    tree = tree_of(**{"a__1.JPG": "1", "a__2.png": "2"})
    assert tree.find("a\\1.jpg") == "a/1.JPG"
    assert tree.find("a/2.PNG") == "a/2.png"
    assert tree.find("a/3.png") is None


def rows(tree, *columns):
    return [row for _, row in tree.table("t.csv", columns or ("a", "b"))]


def test_a_table_may_have_blanks_in_its_header_other_orders_and_empty_lines(tree_of):
    tree = tree_of(**{"t.csv": " b , a\n1,2\n\n,\n3,4\n\n"})
    assert rows(tree) == [{"b": "1", "a": "2"}, {"b": "3", "a": "4"}]


def test_a_cell_may_hold_the_pixels_of_a_picture(tree_of):
    pixels = "255 " * 50_000
    assert rows(tree_of(**{"t.csv": f"a,b\n1,{pixels}\n"}))[0]["b"] == pixels


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('a,b\n1,"open\n', r"t\.csv in .*, line 2, is no csv \(unexpected end of data\)"),
        (f"a,b\n1,{'x' * (2**24 + 1)}\n", r"line 2, is no csv \(field larger than field limit"),
        (
            "a;b\n1;2\n",
            r"lacks the column 'a', 'b'; its first .*: a;b; it is separated by ';'",
        ),
        ("a,b,a\n1,2,3\n", "has the column 'a' twice"),
        ("a,b\n1\n", "line 2: fewer columns than the header has"),
        ("a,b\n1,2\n".encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
        (b"a,b\n\xff\xfa,2\n", "is not UTF-8 text"),
    ],
)
def test_a_table_that_is_none_is_told_of_in_a_sentence(tree_of, text, said):
    with pytest.raises(errors.UserError, match=said) as caught:
        rows(tree_of(**{"t.csv": text}))
    assert "\n" not in str(caught.value)


def test_a_file_that_may_not_be_read_is_not_called_damaged(tree_of, monkeypatch):
    tree = tree_of(**{"t.csv": "a,b\n1,2\n"})

    def forbidden(name):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tree, "_open", forbidden)
    for call in (lambda: tree.read("t.csv"), lambda: rows(tree)):
        with pytest.raises(errors.UserError, match="may not be read; mend its permissions"):
            call()


def test_an_archive_with_a_link_a_way_out_or_a_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tree_module, "MOST_BYTES", 10_000)

    def refused(name, data, mode=0o100644):
        path = tmp_path / "source.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            info = zipfile.ZipInfo(name)
            info.external_attr, info.compress_type = mode << 16, zipfile.ZIP_DEFLATED
            file.writestr(info, data)
        with pytest.raises(errors.UserError) as error:
            Tree(path)
        return str(error.value)

    assert "'a.jpg' in" in refused("a.jpg", "/etc/passwd", 0o120777)
    assert "is a link, and not a file" in refused("a.jpg", "/etc/passwd", 0o120777)
    assert "leads out of the archive" in refused("../a.jpg", "1")
    assert "unpacks to 9,000,000 bytes from" in refused("a.jpg", bytes(9_000_000))
    with zipfile.ZipFile(tmp_path / "good.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("list.txt", "row " * 2000)  # it shrinks much, and is small
        file.writestr("a.jpg", os.urandom(20_000))  # it is large, and does not shrink
    assert Tree(tmp_path / "good.zip").list("") == ["a.jpg", "list.txt"]
