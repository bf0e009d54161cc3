"""Which team a session belongs to: by its id, from its first product to its end."""

from __future__ import annotations

import threading


class Router:
    """A new session goes to the team with the fewest; a team that is lost loses its sessions to others."""

    def __init__(self, teams: int) -> None:
        self._lock = threading.Lock()
        self._alive = set(range(teams))
        self._team: dict[str, int] = {}

    def team(self, session: str) -> int | None:
        """The session's team, chosen when it is first asked for; None if no team is left."""
        with self._lock:
            found = self._team.get(session)
            if found is None and self._alive:
                taken = list(self._team.values())
                found = self._team[session] = min(sorted(self._alive), key=taken.count)
            return found

    def end(self, session: str) -> int | None:
        """Forget a session; returns where it was."""
        with self._lock:
            return self._team.pop(session, None)

    def lose(self, team: int) -> bool:
        """A team is gone: its sessions are asked for again. Whether that is news."""
        with self._lock:
            self._team = {session: t for session, t in self._team.items() if t != team}
            known = team in self._alive
            self._alive.discard(team)
            return known

    def alive(self) -> list[int]:
        """Teams that answer."""
        with self._lock:
            return sorted(self._alive)
