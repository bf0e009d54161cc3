"""Where a user's files live: pinned certificates, the server's key, cached model cards."""

import os
from pathlib import Path


def config_dir() -> Path:
    """SOTTOVOCE_CONFIG_DIR, or `sottovoce` below XDG_CONFIG_HOME, or ~/.config/sottovoce."""
    own = os.environ.get("SOTTOVOCE_CONFIG_DIR")
    if own:
        return Path(own).expanduser()
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "sottovoce"


def known_hosts_path() -> Path:
    return config_dir() / "known_hosts"


def server_key_dir() -> Path:
    return config_dir() / "server"


def card_cache_dir() -> Path:
    return config_dir() / "cards"


def ckks_speed_path() -> Path:
    """What `ckks.speed` measured on this machine."""
    return config_dir() / "ckks-speed.json"


def sessions_dir() -> Path:
    """The client's saved sessions, sealed, and what unseals them."""
    return config_dir() / "sessions"


def server_sessions_dir() -> Path:
    """The server's halves of its clients' saved sessions."""
    return config_dir() / "server-sessions"


def pools_dir() -> Path:
    """Prepared material: one-time secrets of both roles, gigabytes. SOTTOVOCE_POOL_DIR, or `pools` here."""
    own = os.environ.get("SOTTOVOCE_POOL_DIR")
    return Path(own).expanduser() if own else config_dir() / "pools"
