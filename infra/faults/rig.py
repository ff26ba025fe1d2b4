"""Nights on a fleet whose parts are killed and paused by a seeded plan; afterwards catalogue and store are looked at.

    .venv/bin/python infra/faults/rig.py --seed 1 --kills 200 --nights 10

Exits with 1 when something was lost, done twice, or left behind.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread, Timer
from typing import Any

import psutil
import yaml
from checks import broken, open_runs, progress, start_night, wait_until_settled
from parts import Fleet, Part, fleet_of

from ziplora.tinyworld.bundle import FILES

_VICTIMS = {"child": 6, "worker": 3, "night": 2, "machine": 2, "server": 2, "postgres": 2, "pause": 1}
"""How often each part is hit, beside the others. A pause is longer than heartbeats are waited for."""
_PAUSE_SECONDS = 130.0
_NAMES = {
    "subject": [f"{name}-lora" for name in ("robot", "house", "tree", "snowman", "car", "fish", "mushroom", "rocket")],
    "style": [f"{name}-lora" for name in ("neon", "bricks", "fog", "confetti", "grid", "rays", "split", "spotlight")],
}
_NIGHT_SECONDS = 1800.0


@dataclass(frozen=True)
class Hit:
    """One blow of the plan."""

    after: float
    """Seconds since the last one."""
    victim: str
    away: float
    """Seconds until a server or a database is started again."""
    choice: float
    """Which of several."""


def plan(seed: int, kills: int) -> Iterator[Hit]:
    dice = random.Random(seed)
    for _ in range(kills):
        victim = dice.choices(list(_VICTIMS), weights=list(_VICTIMS.values()))[0]
        yield Hit(dice.uniform(4, 24), victim, dice.uniform(0, 10), dice.random())


class Tormentor(Thread):
    """Carries out the plan while nights go on, and measures how long the fleet stands still afterwards."""

    def __init__(self, fleet: Fleet, hits: Iterator[Hit]) -> None:
        super().__init__(daemon=True)
        self.fleet, self.hits = fleet, hits
        self.busy, self.done, self.over = Event(), Counter[str](), Event()
        self.came_back: list[tuple[float, str]] = []

    def run(self) -> None:
        for hit in self.hits:
            waited = 0.0
            while waited < hit.after:  # only the time of nights counts
                self.busy.wait()
                time.sleep(0.5)
                waited += 0.5
            while not self._strike(hit):  # there is none of its kind now
                time.sleep(1 + 4 * hit.choice)
                self.busy.wait()
        self.over.set()

    def _count(self, victim: str) -> None:
        self.done[victim] += 1
        self.came_back.append((time.time(), victim))

    def _strike(self, hit: Hit) -> bool:
        """Whether there was a victim; its part is back afterwards, unless it was paused."""
        if hit.victim in ("server", "postgres"):
            part: Part = getattr(self.fleet, hit.victim)
            part.kill()
            time.sleep(hit.away)
            part.start()
            self.fleet.wait_for_server()
        elif hit.victim == "machine":
            machine = self.fleet.machines[int(hit.choice * len(self.fleet.machines))]
            machine.kill()
            _kill_all(_runs(machine))
            time.sleep(hit.away)
            machine.start()
        else:
            victim = self._chosen(hit)
            if victim is None:
                return False
            try:
                if hit.victim == "pause":
                    self._pause(victim)
                    return True
                victim.kill()
            except psutil.NoSuchProcess:
                return False
        self._count(hit.victim)
        return True

    def _pause(self, victim: psutil.Process) -> None:
        """Stop a run; the next blows fall while it stands still."""

        def go_on() -> None:
            with suppress(psutil.NoSuchProcess):
                victim.send_signal(signal.SIGCONT)
            self._count("pause")

        victim.send_signal(signal.SIGSTOP)
        timer = Timer(_PAUSE_SECONDS, go_on)
        timer.daemon = True
        timer.start()

    def _chosen(self, hit: Hit) -> psutil.Process | None:
        among = self._processes(hit.victim)
        return among[int(hit.choice * len(among))] if among else None

    def _processes(self, victim: str) -> list[psutil.Process]:
        machines = self.fleet.machines
        if victim == "worker":
            return [one for machine in machines for one in machine.tree() if "worker start" in " ".join(_command(one))]
        nights = {one for one in _runs(machines[0]) if _environment(one).get("PREFECT__FLOW_NAME") == "nightly"}
        return [one for machine in machines for one in _runs(machine) if (one in nights) == (victim == "night")]


def _command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return dict(process.environ())
    except psutil.Error:
        return {}


def _runs(machine: Part) -> list[psutil.Process]:
    """The processes of a machine's runs, those whose worker is dead too."""
    home = machine.environment["PREFECT_HOME"]
    found = [(one, _environment(one)) for one in psutil.process_iter()]
    return [one for one, said in found if said.get("PREFECT_HOME") == home and "PREFECT__FLOW_RUN_ID" in said]


def _kill_all(processes: list[psutil.Process]) -> None:
    for one in processes:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue


def write_config(folder: Path, catalogue: str, side: int, night: int) -> Path:
    """A night whose merges no night before had: real ones, with few steps and one picture."""
    for part in ("base", "encoders", "adapters"):
        shutil.copytree(FILES / part, folder / part, dirs_exist_ok=True)
    settings: dict[str, Any] = yaml.safe_load((Path(__file__).parents[2] / "flows" / "demo.yaml").read_text())
    settings |= {
        "sources": [{"folder": "adapters", "role": role, "names": names[:side]} for role, names in _NAMES.items()],
        "methods": [{"method": "dare", "parameters": {"density": round(0.3 + 0.01 * night, 2)}}],
        "previews": {"prompts": ["{subject} {style}"], "seeds": [0], "steps": 4, "guidance": 2.0, "side": 64},
        "catalogue": catalogue,
        "limits": {"batch": 8},
    }
    config = folder / "night.yaml"
    config.write_text(yaml.safe_dump(settings))
    return config


def ziplora(fleet: Fleet, *arguments: str) -> str:
    command = [sys.executable, "-c", "from flows.cli import main; main()", *arguments]
    done = subprocess.run(
        command, env=fleet.server.environment, cwd=fleet.server.folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: {done.stderr}")
    return done.stdout


def ready(fleet: Fleet, config: Path) -> int:
    """Has nights of a CONFIG deployed, and workers wait for them; how many merges one wants: licences forbid some."""
    print(ziplora(fleet, "deploy", str(config)), file=sys.stderr, flush=True)
    ziplora(fleet, "scan", str(config))
    wanted = len(json.loads(ziplora(fleet, "plan", str(config), "--json"))["merges"])
    for machine in fleet.machines:
        machine.start()
    return wanted


def do_night(fleet: Fleet, wanted: int, tormentor: Tormentor, start: Any) -> tuple[float, int]:
    """Have nights started, as the schedule would, until so many merges are done; how long and how many it took."""
    began, starts = time.monotonic(), 0
    tormentor.busy.set()
    while progress(fleet.catalogue).done < wanted:
        if time.monotonic() - began > _NIGHT_SECONDS:
            break
        with suppress(OSError):  # the server is one of the victims: it is asked again
            if not open_runs(fleet.api, "nightly"):
                start()
                starts += 1
        time.sleep(2)
    tormentor.busy.clear()
    return time.monotonic() - began, starts


def main() -> int:
    said = argparse.ArgumentParser(description=__doc__)
    for name, value in (("seed", 1), ("kills", 200), ("nights", 10), ("workers", 2), ("side", 8), ("minutes", 600)):
        said.add_argument(f"--{name}", type=int, default=value)
    told = said.parse_args()
    with fleet_of(told.workers) as (folder, fleet):
        try:
            return _report(folder, fleet, told)
        finally:
            for machine in fleet.machines:
                machine.stop()
                _kill_all(_runs(machine))


def _report(folder: Path, fleet: Fleet, told: argparse.Namespace) -> int:
    config = write_config(folder, fleet.catalogue, told.side, 0)
    a_night = ready(fleet, config)
    tormentor = Tormentor(fleet, plan(told.seed, told.kills))
    tormentor.start()
    end = time.monotonic() + 60 * told.minutes
    for night in range(told.nights):
        write_config(folder, fleet.catalogue, told.side, night)
        wanted = a_night * (night + 1)
        seconds, starts = do_night(fleet, wanted, tormentor, lambda: start_night(fleet.api))
        done, hits = progress(fleet.catalogue).done, sum(tormentor.done.values())
        print(f"night {night}: {done} of {wanted} done, {seconds:.0f} s, {starts} starts, {hits} hits", flush=True)
        if tormentor.over.is_set() or time.monotonic() > end:
            break
    for part in fleet.parts:  # a blow may have been the last thing that happened
        if not part.tree():
            part.start()
    fleet.wait_for_server()
    unsettled = wait_until_settled(fleet.api)
    wrong = broken(fleet.catalogue, folder / "store", wanted, scores=3)
    stood = progress(fleet.catalogue).stood_still(tormentor.came_back)
    print(json.dumps({"hits": dict(tormentor.done), "wanted": wanted, "unsettled": unsettled, "wrong": wrong, **stood}))
    return 1 if wrong or unsettled else 0


if __name__ == "__main__":
    sys.exit(main())
