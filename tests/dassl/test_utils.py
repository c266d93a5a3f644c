"""Files, registries, meters, logs, checkpoint files, downloads."""

import hashlib
import http.server
import os
import re
import ssl
import sys
import threading
import urllib.error

import pytest
import torch

from dassl.data.downloads import download, retry
from dassl.log_format import read_result
from dassl.utils import (
    AverageMeter,
    MetricMeter,
    Registry,
    UserError,
    atomic_write,
    check_availability,
    command_line,
    count_num_param,
    listdir_nohidden,
    load_checkpoint,
    load_pretrained_weights,
    read_json,
    save_checkpoint,
    suggest_name,
    tolist_if_not,
    write_json,
)
from dassl.utils.logger import tee_stdout


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="half way"), atomic_write(path) as file:
        file.write("new")
        raise RuntimeError("half way")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_json_is_read_as_written_and_invalid_json_is_refused(tmp_path):
    write_json({"a": [1, "ü"]}, tmp_path / "x.json")
    assert read_json(tmp_path / "x.json") == {"a": [1, "ü"]}
    (tmp_path / "y.json").write_text("{")
    with pytest.raises(UserError, match=r"y\.json is not valid JSON"):
        read_json(tmp_path / "y.json")
    with pytest.raises(UserError, match=r"cannot read .*z\.json"):
        read_json(tmp_path / "z.json")


def test_listing_leaves_hidden_names_out(tmp_path):
    for name in ("b", ".hidden", "a"):
        (tmp_path / name).touch()
    assert listdir_nohidden(tmp_path, sort=True) == ["a", "b"]


def test_a_registry_returns_classes_by_name_and_refuses_unknown_or_duplicate_names():
    registry = Registry("THING")

    @registry.register()
    class Widget:
        pass

    assert registry.get("Widget") is Widget
    with pytest.raises(UserError, match='unknown thing "Widgit"; did you mean "Widget"'):
        registry.get("Widgit")
    with pytest.raises(KeyError, match="already registered"):
        registry.register(type("Widget", (), {}))
    registry.register(type("Widget", (), {}), force=True)
    assert registry.get("Widget") is not Widget
    assert registry.registered_names() == ["Widget"]


def test_an_unavailable_name_is_refused_with_the_known_names():
    check_availability("a", ["a", "b"])
    check_availability(["a", "b"], ["a", "b"])
    with pytest.raises(UserError, match="Known: a, b"):
        check_availability(["a", "zzz"], ["a", "b"])
    assert tolist_if_not("a") == ["a"]
    assert tolist_if_not(("a", "b")) == ["a", "b"]
    assert suggest_name("coop", ["CoOp"]).startswith('did you mean "CoOp"?')


def test_the_message_of_a_workers_error_leaves_its_traceback_out():
    message = (
        "Caught UserError in DataLoader worker process 0.\nOriginal Traceback …\ndassl.utils.errors.UserError: gone\n"
    )
    assert str(UserError(message)) == "gone"


def test_meters_weigh_values_by_their_count_and_print_value_and_average():
    meter = AverageMeter()
    meter.update(torch.tensor(1.0))
    meter.update(3.0, n=3)
    assert (meter.val, meter.avg) == (3.0, 2.5)
    metrics = MetricMeter()
    metrics.update({"loss": 0.5, "acc": 25.0})
    metrics.update({"loss": 1.0, "acc": 75.0})
    assert str(metrics) == "loss 1.0000 (0.7500) acc 75.0000 (50.0000)"


def test_older_logs_are_renamed_even_those_of_the_same_second(tmp_path, capsys):
    for text in ("first", "second", "third", "fourth"):
        with tee_stdout(tmp_path):
            print(text)
        os.utime(tmp_path / "log.txt", (99, 99))
    assert (tmp_path / "log.txt").read_text() == "fourth\n"
    assert sorted(path.read_text() for path in tmp_path.glob("log.txt-*")) == ["first\n", "second\n", "third\n"]
    assert capsys.readouterr().out == "first\nsecond\nthird\nfourth\n"


def test_a_log_ends_with_the_error_of_its_run(tmp_path):
    with pytest.raises(UserError), tee_stdout(tmp_path):
        raise UserError("the disk is blue")
    assert (tmp_path / "log.txt").read_text() == "error: the disk is blue\n"
    with pytest.raises(ZeroDivisionError), tee_stdout(tmp_path):
        _ = 1 / 0
    assert "Traceback" in (tmp_path / "log.txt").read_text()


def test_a_checkpoint_is_saved_under_its_names_and_other_files_are_refused(tmp_path):
    state = {"state_dict": {"module.w": torch.ones(2)}, "epoch": 3, "optimizer": None, "scheduler": None}
    save_checkpoint(state, tmp_path, is_best=True)
    assert {p.name for p in tmp_path.iterdir()} == {"model.pth.tar-3", "model-best.pth.tar", "checkpoint"}
    assert list(load_checkpoint(tmp_path / "model-best.pth.tar")["state_dict"]) == ["w"]
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match='no "state_dict"'):
        load_checkpoint(tmp_path / "list.pth")


def test_pretrained_weights_match_by_name_and_shape(tmp_path, capsys):
    model = torch.nn.Linear(2, 3)
    save_checkpoint({"state_dict": {"bias": torch.full((3,), 7.0), "weight": torch.ones(9, 9)}, "epoch": 1}, tmp_path)
    load_pretrained_weights(model, tmp_path / "model.pth.tar-1")
    assert model.bias.tolist() == [7, 7, 7]
    assert "Left out, for their name or shape: weight" in capsys.readouterr().out
    with pytest.raises(UserError, match="nothing in"):
        load_pretrained_weights(torch.nn.Conv2d(1, 1, 1), tmp_path / "model.pth.tar-1")
    assert count_num_param(model) == count_num_param(params=model.parameters()) == 9
    assert count_num_param(params=[{"params": list(model.parameters())}]) == 9


@pytest.mark.parametrize("text", ["-0.5", "100.01", "nan", "1.2.3"])
def test_a_number_outside_0_to_100_is_not_read_as_a_result(tmp_path, text):
    (tmp_path / "log.txt").write_text(f"=> result\n* accuracy: 99.00%\n* accuracy: {text}%\n")
    with pytest.raises(UserError, match=f"line 3: {re.escape(text)}% is not a percentage"):
        read_result(tmp_path / "log.txt", test_log=True)


class Server(http.server.BaseHTTPRequestHandler):
    """A server of one file that answers requests for its end."""

    content = os.urandom(3 << 20)
    cuts = 0  # how many connections break off half way
    status = 200  # another one: an error for each request
    offsets: tuple = ()  # the first byte of each request

    def do_GET(self):
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        Server.offsets += (start,)
        if self.status != 200:
            return self.send_error(self.status)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(self.content) - start))
        self.end_headers()
        body = self.content[start:]
        self.wfile.write(body[: len(body) // 2] if Server.cuts else body)
        Server.cuts = max(Server.cuts - 1, 0)
        return None

    def log_message(self, *_):
        pass


@pytest.fixture
def address():
    """The address of the file of a running ``Server``."""
    Server.cuts, Server.status, Server.offsets = 0, 200, ()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/file.bin"
    server.shutdown()
    server.server_close()


def test_a_cut_download_goes_on_by_itself(address, tmp_path, capsys):
    digest, target = hashlib.sha256(Server.content).hexdigest(), tmp_path / "file.bin"
    Server.cuts = 6  # more than there are pauses: each attempt brings some bytes
    download(address, target, digest)
    half = len(Server.content) // 2
    assert Server.offsets[:3] == (0, half, half + half // 2)
    assert target.read_bytes() == Server.content
    assert os.listdir(tmp_path) == ["file.bin"]
    assert capsys.readouterr().out.count(f"Note: the download of {address} broke off (the connection was cut") == 6


def test_a_download_that_is_cut_each_time_is_resumed_by_the_next_call(address, tmp_path):
    digest, target = hashlib.sha256(Server.content).hexdigest(), tmp_path / "file.bin"
    (tmp_path / "file.bin.part").write_bytes(Server.content[:1000])
    Server.status = 503
    with pytest.raises(UserError, match=re.escape(f"put it at {target}")):
        download(address, target, digest)
    assert not target.exists()
    Server.status = 200
    download(address, target, digest)
    assert Server.offsets == (1000,) * 5
    assert target.read_bytes() == Server.content


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (503, 4)])
def test_only_errors_that_may_pass_are_tried_again(status, requests, address, tmp_path):
    Server.status = status
    with pytest.raises(UserError, match=f"HTTP Error {status}"):
        download(address, tmp_path / "file.bin", "0" * 64)
    assert len(Server.offsets) == requests


def test_a_certificate_that_is_not_trusted_is_no_cut_connection():
    calls = []

    def fetch():
        calls.append(1)
        raise urllib.error.URLError(ssl.SSLCertVerificationError("self-signed certificate"))

    with pytest.raises(urllib.error.URLError):
        retry(fetch, "file")
    assert len(calls) == 1


def test_a_damaged_download_is_deleted(address, tmp_path):
    with pytest.raises(UserError, match="arrived damaged"):
        download(address, tmp_path / "file.bin", "0" * 64)
    assert os.listdir(tmp_path) == []


def test_a_closed_standard_output_ends_a_program_quietly(monkeypatch, capfd):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert command_line()(lambda argv: print("text", flush=True))([]) == 141
    assert capfd.readouterr().err == ""
