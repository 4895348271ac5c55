//go:build tools

// Package helm names what is built of the pinned module: what installs the chart.
package helm

import _ "helm.sh/helm/v3/cmd/helm"
