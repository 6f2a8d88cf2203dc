"""An analysis as one page that stands alone: pictures first, numbers beside them.

In: figures, and what the pictures are of. Out: HTML with its style, charts and pictures inside.
Invariant: it loads nothing and runs nothing; whatever a file or a class is called is text in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from kd.analysis import charts
from kd.analysis.errors import KINDS, MISSED
from kd.analysis.markup import Picture, definitions, gallery, interval, legend, note, number, pictures, table, text
from kd.analysis.measure import Analysis
from kd.analysis.style import STYLE
from kd.analysis.threshold import STEPS
from kd.reports.page import NOTHING_FROM_OUTSIDE
from kd.show import percent

CHARTS, GROUPS, SUSPECTS = 12, 40, 24  # at most so many of each in the page; JSON has all
MEANINGS = {
    "classification": "right place, another class",
    "localisation": "right class, IoU 0.1 to 0.5",
    "both": "another class, IoU 0.1 to 0.5",
    "duplicate": "once more where one is found",
    "background": "where nothing is labelled",
    MISSED: "objects that none of these explains",
}


def to_page(figures: Mapping[str, Any], analysis: Analysis) -> str:
    """The page; ``figures`` are those of `kd.analysis.analyse.analyse`."""
    titles = [text(row["title"]) for row in figures["models"]]
    noun = "frame" if figures["full_frame"] else "image"
    picture = pictures(analysis)
    pair = [("pair", "Side by side", _pair(figures, analysis, titles, picture))] if figures["pair"] else []
    sections = [
        ("missed", f"Missed: {figures['critical']['what']}", _critical(figures, analysis, titles, picture)),
        ("errors", "Errors by kind", _errors(figures, analysis, titles, picture)),
        *pair,
        ("recall", "Where it finds less", _recall(figures, titles)),
        ("threshold", "Threshold", _threshold(figures, titles, noun)),
        ("labels", "Likely label errors", _labels(figures, analysis, titles, picture)),
    ]
    head = f"What {' and '.join(titles)} {'miss' if len(titles) > 1 else 'misses'}"
    links = "".join(f'<li><a href="#{anchor}">{text(title)}</a></li>' for anchor, title, _ in sections)
    body = "".join(
        f'<section id="{anchor}" aria-labelledby="{anchor}-h">\n'
        f'<h2 id="{anchor}-h">{text(title)}</h2>\n{content}\n</section>\n'
        for anchor, title, content in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{NOTHING_FROM_OUTSIDE}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{head}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f'<a class="skip" href="#main">Skip to the content</a>\n<main id="main">\n<h1>{head}</h1>\n'
        f"{_summary(figures, titles, noun)}\n"
        f'<nav aria-label="Sections"><ul>{links}</ul></nav>\n{body}</main>\n</body>\n</html>\n'
    )


def _summary(figures: Mapping[str, Any], titles: Sequence[str], noun: str) -> str:
    ignored = f", and {figures['ignored']} that do not count," if figures["ignored"] else ""
    cards = []
    for model, (title, row) in enumerate(zip(titles, figures["models"], strict=True)):
        its = row["critical"]
        rows = [
            ("AP50", percent(row["ap50"])),
            ("recall", percent(row["recall"])),
            ("precision", percent(row["precision"])),
            (f"false alarms per {noun}", f"{row['false_alarms_per_frame']:.2f}"),
        ]
        cards.append(
            f'<div class="card m{model}"><h2>{title}</h2>'
            f'<p class="big">{its["missed"]} <small>of {its["objects"]}</small></p>'
            f"<p>{text(figures['critical']['what'])} missed: <b>{percent(its['share_missed'])} %</b>"
            f"{interval(its['interval95'])}</p>{definitions(rows)}</div>"
        )
    return (
        f'<p class="lead">{figures["objects"]} objects{ignored} in {figures["frames"]} {noun}s, split '
        f"{text(figures['split'])} of {text(figures['data'])}. A detection counts from a confidence of "
        f"{figures['conf']:g} on, and finds an object of its class at an IoU of 0.5. Shares are in per cent, with "
        f'their 95 % intervals in brackets.</p>\n<div class="cards">{"".join(cards)}</div>'
    )


def _critical(figures: Mapping[str, Any], analysis: Analysis, titles: Sequence[str], picture: Picture) -> str:
    parts = [legend(titles)]
    for title, row, examples in zip(titles, figures["models"], analysis.missed, strict=True):
        its = row["critical"]
        words = f"{its['missed']} of {its['objects']}, {its['seen_as_another_class']} of them seen as another class"
        parts.append(gallery(f"<b>{title}</b> misses {words}", examples, picture))
    return "\n".join([*parts, note(f"Which these are: {text(figures['critical']['rule'])}.")])


def _errors(figures: Mapping[str, Any], analysis: Analysis, titles: Sequence[str], picture: Picture) -> str:
    models = [row["errors"] for row in figures["models"]]
    most = max(errors[kind]["ap50_cost"] for errors in models for kind in MEANINGS) or 1
    columns = [("kind", 1), *(pair for title in titles for pair in ((title, 1), ("AP50 it costs", 2)))]
    rows, galleries = [], []
    for kind, meaning in MEANINGS.items():
        cells = ""
        for model, errors in enumerate(models):
            count, cost = errors[kind]["count"], errors[kind]["ap50_cost"]
            cells += f"{number(count)}{number(percent(cost))}<td>{charts.bar(cost / most, model)}</td>"
        rows.append((f"{kind}<br><small>{meaning}</small>", cells))
    for kind in (*KINDS, MISSED):
        for model, (title, errors, worst) in enumerate(zip(titles, models, analysis.worst, strict=True)):
            if worst[kind]:
                summary = f"<b>{kind}</b>, {title}: {errors[kind]['count']}"
                galleries.append(gallery(summary, worst[kind], picture, is_open=not model))
    words = (
        "After TIDE. Counts are of detections at the threshold, or for the last kind of objects. The cost is what AP50 "
        "would gain, over all confidences, if errors of this kind alone were mended; costs do not add up."
    )
    return "\n".join([table(columns, rows), note(words), legend(titles), *galleries])


def _pair(figures: Mapping[str, Any], analysis: Analysis, titles: Sequence[str], picture: Picture) -> str:
    its = figures["pair"]
    counts = (its["first_alone"], its["second_alone"])
    galleries = [
        gallery(f"<b>{title}</b> finds {count} that {other} does not", examples, picture)
        for title, other, count, examples in zip(titles, reversed(titles), counts, analysis.alone, strict=True)
    ]
    words = (
        f"Of {figures['objects']} objects both find {its['both']}, {titles[0]} alone {its['first_alone']}, {titles[1]} "
        f"alone {its['second_alone']}, neither {its['neither']}. McNemar's exact test of no difference in recall: "
        f"p = {its['p']:.2g}. It takes objects for independent, which those of one scene are not."
    )
    return "\n".join([legend(titles), *galleries, f"<p>{words}</p>"])


def _recall(figures: Mapping[str, Any], titles: Sequence[str]) -> str:
    tables = []
    models = [row["recall_by"] for row in figures["models"]]
    for name, groups in models[0].items():
        rows = []
        for group in list(groups)[:GROUPS]:
            shares = "".join(
                f'<div class="share">{charts.bar(its["recall"], model, its["interval95"])}'
                f"<span>{percent(its['recall'])}{interval(its['interval95'])}</span></div>"
                for model, its in enumerate(recall[name][group] for recall in models)
            )
            rows.append((text(group), f"{number(groups[group]['objects'])}<td>{shares}</td>"))
        columns = [(text(name), 1), ("objects", 1), ("recall", 1)]
        more = note(f"and {len(groups) - GROUPS} more") if len(groups) > GROUPS else ""
        tables.append(f"<div><h3>By {text(name)}</h3>{table(columns, rows)}{more}</div>")
    key = "".join(f"<li>{charts.bar(1, model)} {title}</li>" for model, title in enumerate(titles))
    return f'<ul class="legend">{key}</ul>\n<div class="tables">{"".join(tables)}</div>'


def _threshold(figures: Mapping[str, Any], titles: Sequence[str], noun: str) -> str:
    models, kinds = figures["models"], ("precision", "recall")
    counts = {name: row["objects"] for name, row in models[0]["recall_by"]["class"].items()}
    drawn = ""
    for name in sorted(counts, key=lambda name: -counts[name])[:CHARTS]:
        lines = [(model, kind, row["curves"][name][kind]) for model, row in enumerate(models) for kind in kinds]
        chart = charts.curves(f"Precision and recall of {name} over confidence", STEPS.tolist(), lines, figures["conf"])
        drawn += f"<figure>{chart}<figcaption>{text(name)}, {counts[name]} objects</figcaption></figure>"
    key = "".join(
        f"<li>{charts.key(model, kind)} {kind}, {title}</li>" for model, title in enumerate(titles) for kind in kinds
    )
    columns = [("recall", 1)]
    columns += [pair for title in titles for pair in ((f"{title}: threshold", 1), (f"false alarms per {noun}", 1))]
    goals = zip(*(row["goals"] for row in models), strict=True)
    rows = [(f"{100 * goal[0]['recall']:.0f} %", "".join(map(_goal, goal))) for goal in goals]
    left = note(f"The {CHARTS} largest of {len(counts)} classes.") if len(counts) > CHARTS else ""
    return (
        f'<ul class="legend">{key}<li>dotted: the threshold in use, {figures["conf"]:g}</li></ul>\n'
        f'<div class="charts">{drawn}</div>{left}\n<h3>To find more of the {text(figures["critical"]["what"])}</h3>\n'
        + table(columns, rows)
        + note("The highest threshold with this recall, and the wrong detections of any class from there on.")
    )


def _goal(row: Mapping[str, Any]) -> str:
    if row["most"] is None:
        return '<td colspan="2">there are none</td>'
    if row["confidence"] is None:
        return f'<td colspan="2">not reached, {percent(row["most"])} % at most</td>'
    threshold = math.floor(1000 * row["confidence"]) / 1000  # one rounded up would miss the goal
    return number(f"{threshold:.3f}") + number(f"{row['false_alarms_per_frame']:.2f}")


def _labels(figures: Mapping[str, Any], analysis: Analysis, titles: Sequence[str], picture: Picture) -> str:
    who = "Both models agree" if len(titles) == 2 else "One model, with nothing to confirm it, is sure"
    count, file = len(analysis.suspects), figures["label_errors"]
    words = f"{who} (confidence {figures['suspects']['confidence']:g} and more) where a label is missing, or of another"
    words += f" class: {count} times."
    if not count:
        return f"<p>{words}</p>"
    listed = f"All are in {text(file)}." if file else "--label-errors FILE.json lists all for a labelling tool."
    shown = analysis.suspects[:SUSPECTS]
    summary = f"<b>The {len(shown)} surest of {count}</b>"
    return "\n".join([legend(titles), gallery(summary, shown, picture), f"<p>{words} {listed}</p>"])
