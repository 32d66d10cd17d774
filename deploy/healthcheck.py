#!/usr/bin/env python3
"""Ask the worker of this container whether it lives: exit code 0, or 1 with the reason.

It reads the settings that the worker reads, so that it finds the port and knows whether TLS is on.
It cannot see flags of the worker's command: set host, port and certificate by environment or file.
"""

import ipaddress
import ssl
import sys
import urllib.request

from app.config.settings import Settings, load_settings
from tables.model.errors import SettingError

DEADLINE_S = 5


def livez_url(settings: Settings) -> str:
    """Return the URL at which a worker with these settings answers that it lives.

    One that listens on every address is asked on loopback.
    """
    host = settings.web_host.strip("[]")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        if address.is_unspecified:
            host = "127.0.0.1" if address.version == 4 else "::1"  # noqa: PLR2004 - IPv4
        if address.version == 6:  # noqa: PLR2004 - IPv6
            host = f"[{host}]"
    scheme = "https" if settings.web_cert_file else "http"
    return f"{scheme}://{host}:{settings.web_port}/livez"


def main() -> None:
    """Ask once."""
    # The worker is on this machine, and its certificate is for the names that readers use.
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    # A proxy that the environment names is for the way out.
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    try:
        opener.open(livez_url(load_settings()), timeout=DEADLINE_S).close()
    except (SettingError, OSError) as error:
        sys.exit(f"cannot see that the worker lives: {error}")


if __name__ == "__main__":
    main()
