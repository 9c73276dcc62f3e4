// SPDX-License-Identifier: Apache-2.0

package world

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

func TestLoan(t *testing.T) {
	pod := func(name string) runtime.Object {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}}
	}
	for _, c := range []struct {
		name  string
		do    func(l *loan)
		added []string
		good  bool
	}{
		{"nothing", func(*loan) {}, nil, true},
		{"own objects", func(l *loan) {
			l.apply([]runtime.Object{pod("mine"), pod("other")})
			l.delete([]runtime.Object{pod("other")})
		}, []string{"Pod shop/mine"}, true},
		{"the topology's changed", func(l *loan) { l.apply([]runtime.Object{pod("web")}) }, nil, false},
		{"the topology's deleted", func(l *loan) { l.delete([]runtime.Object{pod("web")}) }, nil, false},
		{"a daemon", func(l *loan) { l.touch("killed ztunnel") }, nil, false},
		{"a link", func(l *loan) { l.link("a – b", false) }, nil, false},
		{"a link, restored", func(l *loan) { l.link("a – b", false); l.link("a – b", true) }, nil, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := &loan{added: map[string]runtime.Object{}, first: map[string]bool{"Pod shop/web": true}, links: map[string]bool{}}
			c.do(l)
			added, err := l.end()
			if good := err == nil; good != c.good {
				t.Errorf("as it was: %v, want %v", err, c.good)
			}
			var names []string
			for _, o := range added {
				names = append(names, objectName(o))
			}
			if !slices.Equal(names, c.added) {
				t.Errorf("to be deleted: %q, want %q", names, c.added)
			}
		})
	}
	var nobodys *loan // a lab of a scenario's own
	nobodys.touch("killed ztunnel")
	nobodys.apply([]runtime.Object{pod("web")})
	nobodys.link("a – b", false)
}
