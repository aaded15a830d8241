"""Published methods: what is measured on a network, whatever the finding."""
