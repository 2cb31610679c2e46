"""SelfAug as a plugin of ms-swift: ``--external_plugins selfaug_swift.py``."""

import selfaug.plugins.ms_swift  # noqa: F401
