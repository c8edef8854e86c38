import sys


def test_without_gradio_it_says_what_to_install(fails, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert 'pip install "uniwetok-hf[app]"' in fails("app")
