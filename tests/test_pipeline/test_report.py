from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from scipy.stats import sem, t

from pipeline.compare import combine_runs, summary_table
from pipeline.exports import write_export
from pipeline.report import report_html, write_report
from pipeline.whole_file import write_whole

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--enable-logging=stderr",
    "--virtual-time-budget=5000",
    "--dump-dom",
)
USE_PAGE = """
const q = (s) => [...document.querySelectorAll(s)];
const out = { charts: q("figure svg").length, means: q("path.mean").length };
out.label = () => q("figure svg")[0].getAttribute("aria-label");
out.before = out.label();
q("#axes input[value=wall_time]")[0].click();
out.after = out.label();
out.stepped = q("path.mean")[0].getAttribute("d").includes("H");
q("#axes input[value=loss_values]")[0].click();
out.note = document.getElementById("curve-note").textContent;
q("#scale input[value=log]")[0].click();
q("#legend button")[0].click();
out.hidden = q("path.mean").length;
const column = q("#runs thead th").findIndex((h) => h.textContent.includes("accuracy"));
const values = () => q("#runs tbody tr").map((r) => r.cells[column].textContent);
const head = q("#runs thead th")[column];
head.firstChild.click();
out.falling = values();
out.sort = head.getAttribute("aria-sort");
head.firstChild.click();
out.rising = values();
out.width = document.documentElement.scrollWidth - document.documentElement.clientWidth;
const result = document.createElement("pre");
result.id = "result";
result.textContent = JSON.stringify(out);
document.body.append(result);
"""


@pytest.fixture
def browse(tmp_path):
    """Return a function from a page to its DOM and its console, with no network."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"needs one of {', '.join(BROWSERS)}")

    def run(page, *flags):
        command = [browser, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *flags]
        done = subprocess.run(
            [*command, page.as_uri()], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout, [x for x in done.stderr.splitlines() if "CONSOLE" in x]

    return run


@pytest.fixture(scope="module")
def combined(tmp_path_factory, write_demo_runs):
    return combine_runs(write_demo_runs(tmp_path_factory.mktemp("results")))


def page_data(page: str) -> dict:
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', page)
    assert text
    return json.loads(text[1])


class Addresses(HTMLParser):
    """Collects what a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.found += [v or "" for k, v in attrs if k in ("src", "href", "srcset")]
        self.open.append(tag)


def test_report__is_one_small_file_that_loads_nothing(combined, tmp_path):
    out = write_report(combined, tmp_path / "out" / "report.html")
    assert out == tmp_path / "out" / "report.html"
    assert [p.name for p in out.parent.iterdir()] == ["report.html"]
    text = out.read_text(encoding="utf-8")
    assert len(text) < 200_000
    parser = Addresses()
    parser.feed(text)
    assert parser.found == []
    assert "link" not in parser.open
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest", text)
    assert "default-src 'none'" in text


def test_report__has_every_run_its_figures_and_provenance(combined):
    page = report_html(combined)
    for run_id in combined["run_id"].values:
        assert run_id in page
    for accuracy in combined["final_test_accuracy"].values:
        assert f"{accuracy:.4f}" in page
    for words in ("c0ffee0123456789", "torch 2.9.0", "x86_64", "algorithm.window"):
        assert words in page


def test_report__charts_hold_the_runs_values(combined):
    data = page_data(report_html(combined))
    group = data["groups"][1]
    assert group["label"] == "nd-cao sync"
    line = group["runs"][0]
    assert line["x"]["update"] == combined["step"].values[0].tolist()
    drawn = line["y"]["test_accuracy"]
    assert drawn == pytest.approx(combined["test_accuracy"].values[0], rel=1e-4)
    assert data["groups"][2]["runs"][0]["x"]["loss_values"] is None
    assert "nd-cao sync goes from" in data["alts"]["test_accuracy"]["wall_time"]


def test_report__escapes_all_text_of_users(tmp_path, synthetic_run, write_run):
    evil = '</script><script>alert(1)</script><img src=x onerror="alert(2)">'
    run = synthetic_run(
        attrs={
            "algorithm": evil,
            "stop_reason": evil,
            "status": "failed",
            "partition": evil,
            "dataset": evil,
            "git_commit": evil,
            "hardware": json.dumps({evil: evil}),
        },
        config={"loss": evil, evil: 1},
    )
    paths = [
        write_run(run, tmp_path),
        write_run(synthetic_run(seed=1), tmp_path),
    ]
    page = report_html(combine_runs(paths), title=evil)
    assert "<script>alert" not in page
    assert "<img" not in page
    assert page.count("</script>") == 2
    assert page_data(page)["groups"][0]["label"].startswith("</script>")


def test_report__shows_no_secret_that_an_older_version_recorded(
    tmp_path, synthetic_run, write_run
):
    cluster = {"kind": "jobqueue", "workers": 2, "options": {"password": "hunter2"}}
    cluster["tls"] = {"ca_file": "ca", "cert": "c", "key": "hunter2.pem"}
    other = {**cluster, "options": {"password": "hunter3"}}
    runs = [
        synthetic_run(seed=seed, config={"cluster": one})
        for seed, one in enumerate((cluster, other))
    ]
    combined = combine_runs([write_run(run, tmp_path) for run in runs])
    page = report_html(combined)
    assert "hunter" not in page + str(summary_table(combined).to_dict())
    assert "jobqueue" in page
    (file, _) = write_export(combined, tmp_path / "runs.csv")
    assert "hunter" not in file.read_text()


def test_report__says_what_limits_the_comparison(tmp_path, synthetic_run, write_run):
    end = {"status": "diverged", "stop_reason": "non-finite loss", "git_dirty": True}
    end["git_commit"] = "beef"
    paths = [
        write_run(synthetic_run(seed=0), tmp_path),
        write_run(synthetic_run("sgd", seed=1, n_evals=1, attrs=end), tmp_path),
        write_run(synthetic_run(seed=2), tmp_path, complete=False),
    ]
    page = report_html(combine_runs(paths, partial=True))
    for words in (
        "Fewer than 3 seeds: nd-cao sync (n = 1), sgd sync (n = 1)",
        "do not share the same seeds",
        "1 run ended early",
        "sgd-sync-digits-s1-abc123 (diverged: non-finite loss)",
        "Left out: nd-cao-sync-digits-s2",
        "different commits",
        "uncommitted changes",
    ):
        assert words in page


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (0, "Fewer than 3 seeds: all 6 methods."),
        (2, "loss_samples=4 (n = 1) and 2 others."),
    ],
)
def test_report__names_a_few_of_many_methods_with_few_seeds(
    more, words, tmp_path, synthetic_run, write_run
):
    runs = [
        write_run(synthetic_run(config={"loss_samples": n}), tmp_path / f"{n}")
        for n in range(1, 7)
    ]
    runs += [
        write_run(
            synthetic_run("sgd", seed=seed, config={"loss_samples": 9}), tmp_path / "9"
        )
        for seed in range(3 if more else 0)
    ]
    assert words in report_html(combine_runs(runs))


def test_report__of_failed_diverged_shorter_and_missing_runs_is_correct_and_says_so(
    tmp_path, synthetic_run, write_run
):
    steps = {"budget": {"steps": 110}}
    end = {"status": "diverged", "stop_reason": "diverged: non-finite loss"}
    runs = [synthetic_run(mode="sync", seed=seed) for seed in range(6)]
    runs += [synthetic_run(mode="async", seed=seed) for seed in range(3)]
    runs += [synthetic_run(mode="async", seed=3, n_evals=7, config=steps)]
    runs += [synthetic_run(mode="async", seed=4, n_evals=3, attrs=end, config=steps)]
    runs[-1]["val_accuracy"][:] = 0.2
    ds = combine_runs([write_run(run, tmp_path) for run in runs])
    page = report_html(
        ds, target={"val_accuracy": 0.6}, left_out=["async-s6: failed, worker lost"]
    )
    for words in (
        "Left out: async-s6: failed, worker lost.",
        "1 run ended early",
        "nd-cao-async-digits-s4-abc123 (diverged: non-finite loss)",
        "Missing seeds: nd-cao async: 5.",
        "nd-cao-sync-digits-s5-abc123: no partner with seed 5",
        "nd-cao-async-digits-s4-abc123: ended before: diverged: non-finite loss",
        "4 of 5 first reached it",
        "sign test of the median, censored pairs as bounds",
        "n = 4 pairs (Student t, 95%)",
    ):
        assert words in page, words
    at = 60  # where the shorter run ended, which used its own budget up
    step = ds["step"].values
    values = [
        ds["test_accuracy"].values[run][step[run] == at].item()
        for run in (*range(4), *range(6, 10))
    ]
    difference = sum(values[4:]) / 4 - sum(values[:4]) / 4
    assert f"(60), async − sync: {difference:+.4f}".replace("-0.", "−0.") in page


def test_report__methods_have_intervals_from_three_runs_on(tmp_path, write_demo_runs):
    ds = combine_runs(write_demo_runs(tmp_path, 3))
    page = report_html(ds)
    values = ds["final_test_accuracy"].sel(mode="async").values
    low, high = t.interval(0.95, 2, values.mean(), sem(values))
    assert f"[{low:.4f}, {high:.4f}]" in page
    assert page.count("mean, n = 3 runs, Student t") > 6
    curve = page_data(page)["groups"][0]["mean"]["test_accuracy"]["update"]
    assert curve["half"][-1] == pytest.approx(high - values.mean(), rel=1e-3)


def test_report__compares_partitions_only_where_they_vary(
    tmp_path, synthetic_run, write_run
):
    paths = [
        write_run(synthetic_run(seed=seed, attrs={"partition": name}), tmp_path / name)
        for name in ("by_layer", "by_unit:9")
        for seed in range(3)
    ]
    assert "Accuracy, difference to the first" not in report_html(
        combine_runs(paths[:3])
    )
    page = report_html(combine_runs(paths))
    assert "Accuracy, difference to the first" in page
    assert "n = 3 pairs" in page


def test_report__stays_small_with_many_long_runs(tmp_path, synthetic_run, write_run):
    path = write_run(synthetic_run(n_evals=600), tmp_path)
    one = combine_runs([path])
    many = one.isel(run=[0] * 300)
    page = report_html(many)
    assert len(page) < 5_000_000
    line = page_data(page)["groups"][0]["runs"][0]["x"]["update"]
    assert len(line) < 200
    assert line[-1] == one["step"].values[0, -1]


def test_write_whole__leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
    page = write_whole(tmp_path / "a.html", "old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RuntimeError, match="No space"):
        write_whole(page, "new")
    assert page.read_text(encoding="utf-8") == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.html"]


def test_report__opens_in_a_browser_without_network_or_console_message(
    combined, tmp_path, browse
):
    page = write_report(combined, tmp_path / "report.html")
    dom, console = browse(page)
    assert console == []
    assert dom.count('class="mean"') == 6
    assert dom.count('role="img"') == 6


def test_report__selector_legend_and_sorting_work_in_a_browser(
    combined, tmp_path, browse
):
    text = report_html(combined)
    # The page's own policy would refuse the script that uses it.
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    page = write_whole(
        tmp_path / "report.html",
        text.replace("</body>", f"<script>{USE_PAGE}</script></body>"),
    )
    dom, console = browse(page, "--window-size=500,900")
    assert console == []
    result = re.search(r'<pre id="result">(.*?)</pre>', dom)
    assert result
    out = json.loads(result[1].replace("&quot;", '"').replace("&amp;", "&"))
    assert out["charts"] == 6
    assert out["means"] == 6
    assert "against updates per node" in out["before"]
    assert "against wall time (s)" in out["after"]
    assert out["stepped"]
    assert "sgd sync" in out["note"]
    assert out["hidden"] == 2
    assert out["sort"] == "descending"
    assert out["falling"] == sorted(out["falling"], reverse=True)
    assert out["rising"] == sorted(out["falling"])
    assert out["width"] <= 0, "the page must not scroll sideways on a narrow screen"
